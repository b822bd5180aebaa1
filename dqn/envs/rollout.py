"""Rollout: play all lanes for one cycle with the current network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from threading import Event

import numpy as np
import torch

from dqn.envs.experience import Experience
from dqn.envs.lanes import Lanes
from dqn.envs.policy import CyclePolicy
from dqn.threads import run_in_threads


def play_cycle(
    groups: Sequence[Lanes],
    estimate: Callable[[np.ndarray], np.ndarray],
    experience: Experience,
    policy: CyclePolicy,
    on_step: Callable[[int, int], None] = lambda done, steps: None,
) -> None:
    """Play T steps of L lanes and fill `experience` with them.

    Each group of lanes plays in its own thread, so that the games of one group are emulated while the network
    estimates the Q-values of another. The timing of the threads does not change the result.

    Args:
        groups: groups of the L lanes; after the call they are in the states after the last step.
        estimate: maps states (N, 105, 80, C) uint8 to Q-values (N, A) float32; called from all threads.
        experience: T steps of L lanes, to be filled in place.
        policy: of the cycle, with one generator for each group.
        on_step: called with the number of steps done and T, after each step of the first group.
    """
    assert experience.steps >= 1 and len(policy.generators) == len(groups)
    ends = np.cumsum([len(lanes.episodes) for lanes in groups])
    slices = [slice(end - len(lanes.episodes), end) for lanes, end in zip(groups, ends.tolist(), strict=True)]
    assert slices[-1].stop == experience.actions.shape[1]

    def play_group(group: int, stopped: Event) -> None:
        lanes, where = groups[group], slices[group]
        q_values = estimate(lanes.states)
        for step in range(experience.steps):
            if stopped.is_set():
                return
            actions = lanes.with_noops(policy.actions(q_values, step, group))
            _play_step(lanes, q_values, actions, experience, (step, where))
            q_values = estimate(lanes.states)
            if where.start == 0:
                on_step(step + 1, experience.steps)
        experience.bootstrap_q_values[where] = q_values

    calls = [partial(play_group, group) for group in range(len(groups))]
    run_in_threads(calls, len(groups), max(1, torch.get_num_threads() // len(groups)))


def _play_step(
    lanes: Lanes, q_values: np.ndarray, actions: np.ndarray, experience: Experience, row: tuple[int, slice]
) -> None:
    """Take `actions` in `lanes`, and store the step in `experience` at `row` (step, lanes)."""
    experience.states[row] = lanes.states
    experience.q_values[row] = q_values
    experience.episode[row] = lanes.episodes
    outcome = lanes.step(actions)
    experience.actions[row] = actions
    experience.rewards[row] = outcome.rewards
    experience.life_lost[row] = outcome.life_lost
    experience.terminated[row] = outcome.terminated
    experience.truncated[row] = outcome.truncated
