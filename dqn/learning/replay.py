"""The replay memory that an optimization run trains from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from dqn.envs.experience import Experience, Targets

_ESTIMATED_STATES = 1_024  # at a time


@dataclass(frozen=True)
class ReplayMemory:
    """`N` states with what the network should estimate for them, lanes and steps forgotten."""

    states: Tensor  # (N, 105, 80, C) uint8
    q_values: Tensor  # (N, A) float32: targets
    actions: Tensor  # (N,) int64: actions taken
    estimation_errors: np.ndarray  # (N,) float32: how far the sweep moved the taken action's value

    @classmethod
    def of(cls, experience: Experience, targets: Targets) -> ReplayMemory:
        """All states of an experience with their targets, on the CPU; the states are not copied."""
        count = experience.states_played
        return cls(
            states=torch.from_numpy(experience.states.reshape(count, *experience.states.shape[2:])),
            q_values=torch.from_numpy(targets.q_values.reshape(count, -1)),
            actions=torch.from_numpy(experience.actions.reshape(count).astype(np.int64)),
            estimation_errors=targets.estimation_errors.reshape(count),
        )

    def on(self, device: torch.device) -> ReplayMemory:
        """This memory on `device`, if that has room for twice as much; else as it is."""
        if device.type != "cuda" or _free_memory(device) < 2 * self.states.nbytes:
            return self
        states, q_values, actions = (each.to(device) for each in (self.states, self.q_values, self.actions))
        return ReplayMemory(states, q_values, actions, self.estimation_errors)

    def __len__(self) -> int:
        return len(self.states)

    def batch(self, chosen: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """States, targets and actions of the chosen indices, as tensors on `device`."""
        index = torch.from_numpy(chosen).to(self.states.device, non_blocking=True)
        picked = [each.index_select(0, index) for each in (self.states, self.q_values, self.actions)]
        if self.states.device.type != device.type:  # from pinned memory the GPU fetches them while it computes
            picked = [each.pin_memory().to(device, non_blocking=True) for each in picked]
        states, q_values, actions = picked
        return states, q_values, actions


def _free_memory(device: torch.device) -> int:
    """Bytes that torch can allocate on a GPU: what the driver has free, and what torch's own cache has unused."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def reestimated(experience: Experience, steps: int, estimate: Callable[[np.ndarray], np.ndarray]) -> Experience:
    """`experience` with estimates made now for its first `steps` steps, in place of those from when it was played.

    Swept again it gives the returns as the present network sees them.
    Source: Daley and Amato 2019, Reconciling λ-Returns with Experience Replay, whose cache this is.
    """
    q_values = experience.q_values.copy()
    size = max(1, _ESTIMATED_STATES // q_values.shape[1])
    for start in range(0, steps, size):
        rows = slice(start, min(start + size, steps))
        states = experience.states[rows]
        q_values[rows] = estimate(states.reshape(-1, *states.shape[2:])).reshape(q_values[rows].shape)
    return replace(experience, q_values=q_values)


def cut_at_starts(experience: Experience) -> Experience:
    """`experience` of several cycles with lanes cut off where they went on in mid-game, between two of the cycles.

    What stands there is bootstrapped from, as at a time limit: the next row is another episode, although this one did
    not end.
    """
    ended = experience.life_lost | experience.terminated | experience.truncated
    truncated = experience.truncated.copy()
    truncated[:-1] |= (experience.episode[1:] != experience.episode[:-1]) & ~ended[:-1]
    return replace(experience, truncated=truncated)


def shuffled_batches(states: int, batch_size: int, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """Batches of indices below `states` without end: each epoch shuffled anew, its ragged rest left out."""
    batch_size = min(batch_size, states)
    while True:
        order = generator.permutation(states)
        for start in range(0, states - batch_size + 1, batch_size):
            yield order[start : start + batch_size]


def balanced_batches(
    estimation_errors: np.ndarray, threshold: float, batch_size: int, generator: np.random.Generator
) -> Iterator[np.ndarray]:
    """Batches of indices without end, in which high estimation errors have at least half the places.

    Their share is max(share of the memory, 0.5), rounded down to whole states; the others have the
    rest. Drawn without replacement within a batch; a group with too few states gives what it has and
    the other fills its places.

    Source: the tutorial's replay memory.
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
    """Which estimation errors are high: those not below the threshold."""
    high: np.ndarray = estimation_errors >= threshold
    return high


def balanced_sizes(high: int, low: int, batch_size: int) -> tuple[int, int]:
    """Places in a batch for `high` states with high errors and `low` others, by `balanced_batches`."""
    batch_size = min(batch_size, high + low)
    share = max(high / (high + low), 0.5)
    high_size = min(int(share * batch_size), high)
    low_size = min(batch_size - high_size, low)
    return batch_size - low_size, low_size
