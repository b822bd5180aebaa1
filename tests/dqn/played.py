"""Random play, and a check that two `Lanes` are in the same state."""

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
    """Experience of a policy that selects a random action with probability `epsilon`, else the action `best`."""
    count, width = len(lanes.action_names), len(lanes.episodes)
    experience = Experience.empty(steps, width, count)
    constant = LinearSchedule(start=epsilon, end=epsilon)
    policy = CyclePolicy(constant, states, width, [generator(SEED, "play", states)])
    play_cycle([lanes], lambda batch: np.eye(count, dtype=np.float32)[[best] * len(batch)], experience, policy)
    return experience


def assert_same_future(first: Lanes, second: Lanes, steps: int) -> None:
    """Check that both have the same states, now and for `steps` more steps with the same actions."""
    assert np.array_equal(first.states, second.states)
    assert np.array_equal(first.episodes, second.episodes)
    draws = np.random.default_rng(0)
    for _ in range(steps):
        actions = draws.integers(len(first.action_names), size=len(first.episodes))
        one, other = first.step(actions), second.step(actions)
        for name in ("rewards", "life_lost", "terminated", "truncated"):
            assert np.array_equal(getattr(one, name), getattr(other, name)), name
        assert np.array_equal(first.states, second.states)
        assert np.array_equal(first.episodes, second.episodes)
