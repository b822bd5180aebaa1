"""Lanes that play at random, and whether two of them are the same."""

from __future__ import annotations

import numpy as np

from dqn.envs.experience import Experience
from dqn.envs.lanes import Lanes
from dqn.envs.policy import CyclePolicy
from dqn.envs.rollout import play_cycle
from dqn.randomness import generator
from dqn.schedules import LinearSchedule

SEED = 7


def play_at_random(lanes: Lanes, steps: int, states: int, best: int = 0, epsilon: float = 1.0) -> Experience:
    """Experience of random actions, or of the best one."""
    count, width = len(lanes.action_names), len(lanes.episodes)
    experience = Experience.empty(steps, width, count)
    constant = LinearSchedule(start=epsilon, end=epsilon)
    policy = CyclePolicy(constant, states, width, [generator(SEED, "play", states)])
    play_cycle([lanes], lambda seen: np.eye(count, dtype=np.float32)[[best] * len(seen)], experience, policy)
    return experience


def assert_same_future(first: Lanes, second: Lanes, steps: int) -> None:
    """The same states now, and byte for byte the same whatever is done next."""
    assert np.array_equal(first.states, second.states)
    assert np.array_equal(first.episodes, second.episodes)
    draws = np.random.default_rng(0)
    for _ in range(steps):
        actions = draws.integers(len(first.action_names), size=len(first.episodes))
        ours, theirs = first.step(actions), second.step(actions)
        for name in ("rewards", "life_lost", "terminated", "truncated"):
            assert np.array_equal(getattr(ours, name), getattr(theirs, name)), name
        assert np.array_equal(first.states, second.states)
        assert np.array_equal(first.episodes, second.episodes)
