"""Play: many lanes at once with the current network, epsilon-greedy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from threading import Event

import numpy as np
import torch

from dqn.envs.experience import Experience
from dqn.envs.lanes import Lanes
from dqn.envs.policy import epsilon_greedy
from dqn.schedules import LinearSchedule
from dqn.threads import run_in_threads


def play(
    groups: Sequence[Lanes],
    estimate: Callable[[np.ndarray], np.ndarray],
    experience: Experience,
    epsilon: LinearSchedule,
    states: int,
    generators: Sequence[np.random.Generator],
    on_step: Callable[[int, int], None] = lambda done, steps: None,
    total_lanes: int | None = None,
) -> None:
    """Play every lane for all steps of `experience`, and fill that.

    Each group of lanes plays in a thread of its own, so that no group waits for another: while one looks
    at its states, another one's games go on. What is played does not depend on who is faster.

    Args:
        groups: games of all L lanes together, left where the last step leads.
        estimate: states (N, 105, 80, C) uint8 to Q-values (N, A) float32; called by all threads.
        experience: T steps of L lanes to be filled.
        epsilon: probability of a random action, by states played.
        states: played by the run before this.
        generators: draws of the policy, one for each group.
        on_step: told the steps done and to do by the first group.
        total_lanes: of the run, where these are some of more; each step of all of them plays so many states.
    """
    assert experience.steps >= 1
    states_per_step = total_lanes or experience.actions.shape[1]
    ends = np.cumsum([len(lanes.episodes) for lanes in groups])
    slices = [slice(end - len(lanes.episodes), end) for lanes, end in zip(groups, ends.tolist(), strict=True)]
    assert slices[-1].stop == experience.actions.shape[1]

    def play_group(lanes: Lanes, where: slice, generator: np.random.Generator, stopped: Event) -> None:
        q_values = estimate(lanes.states)
        for step in range(experience.steps):
            if stopped.is_set():
                return
            chance = epsilon.at(states + step * states_per_step)
            _play_step(lanes, q_values, experience, step, where, epsilon_greedy(q_values, chance, generator))
            q_values = estimate(lanes.states)
            if where.start == 0:
                on_step(step + 1, experience.steps)
        experience.bootstrap_q_values[where] = q_values

    calls = [partial(play_group, *each) for each in zip(groups, slices, generators, strict=True)]
    run_in_threads(calls, len(groups), max(1, torch.get_num_threads() // len(groups)))


def _play_step(
    lanes: Lanes, q_values: np.ndarray, experience: Experience, step: int, where: slice, actions: np.ndarray
) -> None:
    experience.states[step, where] = lanes.states
    experience.q_values[step, where] = q_values
    experience.episode[step, where] = lanes.episodes
    actions = lanes.with_noops(actions)
    outcome = lanes.step(actions)
    experience.actions[step, where] = actions
    experience.rewards[step, where] = outcome.rewards
    experience.life_lost[step, where] = outcome.life_lost
    experience.terminated[step, where] = outcome.terminated
    experience.truncated[step, where] = outcome.truncated
