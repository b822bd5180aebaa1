"""The replay memory of an optimization run, and the batches drawn from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from dqn.envs.experience import Experience, Targets

_ESTIMATED_STATES = 1_024  # in one forward pass


@dataclass(frozen=True)
class ReplayMemory:
    """N states with their targets, regardless of lanes and steps."""

    states: Tensor  # (N, 105, 80, C) uint8
    q_values: Tensor  # (N, A) float32: targets
    actions: Tensor  # (N,) int64: actions taken
    estimation_errors: np.ndarray  # (N,) float32: by how much the sweep changed the Q-value of the action taken

    @classmethod
    def of(cls, experience: Experience, targets: Targets) -> ReplayMemory:
        """All states of an experience with their targets, on the CPU. The states are not copied."""
        count = experience.states_played
        return cls(
            states=torch.from_numpy(experience.states.reshape(count, *experience.states.shape[2:])),
            q_values=torch.from_numpy(targets.q_values.reshape(count, -1)),
            actions=torch.from_numpy(experience.actions.reshape(count).astype(np.int64)),
            estimation_errors=targets.estimation_errors.reshape(count),
        )

    def on(self, device: torch.device) -> ReplayMemory:
        """A copy on `device` if that is a GPU with twice the free memory; otherwise this memory itself."""
        if device.type != "cuda" or _free_memory(device) < 2 * self.states.nbytes:
            return self
        states, q_values, actions = (each.to(device) for each in (self.states, self.q_values, self.actions))
        return ReplayMemory(states, q_values, actions, self.estimation_errors)

    def __len__(self) -> int:
        return len(self.states)

    def batch(self, chosen: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """States, targets and actions at the indices `chosen` (B,) int64, as tensors on `device`."""
        index = torch.from_numpy(chosen).to(self.states.device, non_blocking=True)
        picked = [each.index_select(0, index) for each in (self.states, self.q_values, self.actions)]
        if self.states.device.type != device.type:  # copies from pinned memory overlap with the GPU's computation
            picked = [each.pin_memory().to(device, non_blocking=True) for each in picked]
        states, q_values, actions = picked
        return states, q_values, actions


def _free_memory(device: torch.device) -> int:
    """Number of bytes that torch can allocate on a GPU: free in the driver, or unused in torch's cache."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def reestimated(experience: Experience, steps: int, estimate: Callable[[np.ndarray], np.ndarray]) -> Experience:
    """`experience` with new estimates for its first `steps` steps, in place of those from when it was played.

    A sweep of the result gives the returns by the estimates of the present network.
    Source: the cache of Daley and Amato 2019, Reconciling λ-Returns with Experience Replay.

    Args:
        experience: of one or more cycles; it is not changed.
        steps: number of steps to estimate.
        estimate: maps states (N, 105, 80, C) uint8 to Q-values (N, A) float32.
    """
    q_values = experience.q_values.copy()
    size = max(1, _ESTIMATED_STATES // q_values.shape[1])
    for start in range(0, steps, size):
        rows = slice(start, min(start + size, steps))
        states = experience.states[rows]
        q_values[rows] = estimate(states.reshape(-1, *states.shape[2:])).reshape(q_values[rows].shape)
    return replace(experience, q_values=q_values)


def cut_at_starts(experience: Experience) -> Experience:
    """`experience` of several cycles, truncated where a lane was restarted in mid-game between two cycles.

    There the next row belongs to another episode, although this episode did not end. Marking the step as truncated
    makes the sweep bootstrap from it.
    """
    ended = experience.life_lost | experience.terminated | experience.truncated
    truncated = experience.truncated.copy()
    truncated[:-1] |= (experience.episode[1:] != experience.episode[:-1]) & ~ended[:-1]
    return replace(experience, truncated=truncated)


def shuffled_batches(states: int, batch_size: int, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """Endless batches of indices below `states`. Each epoch is shuffled, and its incomplete last batch is left out."""
    batch_size = min(batch_size, states)
    while True:
        order = generator.permutation(states)
        for start in range(0, states - batch_size + 1, batch_size):
            yield order[start : start + batch_size]


def balanced_batches(
    estimation_errors: np.ndarray, threshold: float, batch_size: int, generator: np.random.Generator
) -> Iterator[np.ndarray]:
    """Endless batches of indices, of which at least half have high estimation errors.

    The share of high errors in a batch is max(their share of the memory, 0.5), rounded down to whole states. States
    are drawn without replacement within a batch. If one group has too few states, the other group fills the batch.

    Source: the tutorial's replay memory.

    Args:
        estimation_errors: (N,) float32.
        threshold: errors of at least this are high.
        batch_size: number of states in a batch; the batch has N states if that is less.
        generator: makes the draws.
    """
    is_high = high_errors(estimation_errors, threshold)
    high, low = np.flatnonzero(is_high), np.flatnonzero(~is_high)
    high_size, low_size = balanced_sizes(len(high), len(low), batch_size)
    while True:
        yield np.concatenate(
            [
                generator.choice(high, high_size, replace=False),
                generator.choice(low, low_size, replace=False),
            ]
        )


def high_errors(estimation_errors: np.ndarray, threshold: float) -> np.ndarray:
    """Mask of the estimation errors that are high: those of at least `threshold`."""
    high: np.ndarray = estimation_errors >= threshold
    return high


def balanced_sizes(high: int, low: int, batch_size: int) -> tuple[int, int]:
    """Number of states with high and with low errors in a batch of `balanced_batches`.

    Args:
        high: number of states with high errors in the memory.
        low: number of the other states in the memory.
        batch_size: number of states in a batch.
    """
    batch_size = min(batch_size, high + low)
    share = max(high / (high + low), 0.5)
    high_size = min(int(share * batch_size), high)
    low_size = min(batch_size - high_size, low)
    return batch_size - low_size, low_size
