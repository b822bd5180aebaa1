"""Play: many lanes at once with the current network, epsilon-greedy."""

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
    """Play every lane for all steps of `experience`, and fill that.

    Each group of lanes plays in a thread of its own, so that no group waits for another: while one looks
    at its states, another one's games go on. What is played does not depend on who is faster.

    Args:
        groups: games of all L lanes together, left where the last step leads.
        estimate: states (N, 105, 80, C) uint8 to Q-values (N, A) float32; called by all threads.
        experience: T steps of L lanes to be filled.
        policy: of the cycle, with one generator for each group.
        on_step: told the steps done and to do by the first group.
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
    """Take `actions` and store the step in `experience` at `row`, which is its step and its lanes."""
    experience.states[row] = lanes.states
    experience.q_values[row] = q_values
    experience.episode[row] = lanes.episodes
    outcome = lanes.step(actions)
    experience.actions[row] = actions
    experience.rewards[row] = outcome.rewards
    experience.life_lost[row] = outcome.life_lost
    experience.terminated[row] = outcome.terminated
    experience.truncated[row] = outcome.truncated
