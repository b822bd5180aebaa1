from __future__ import annotations

from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import dqn.envs.policy
from dqn.config import make_config
from dqn.envs.experience import Experience
from dqn.envs.histories import first_histories
from dqn.envs.lanes import open_lanes
from dqn.envs.policy import CyclePolicy
from dqn.envs.rollout import play_cycle
from dqn.schedules import LinearSchedule

GREEDY = LinearSchedule(start=0, end=0)


class CountingLanes:
    """Lanes whose states contain the number of the step, and whose rewards encode step and action."""

    action_names = ("A", "B", "C")

    def __init__(self, lanes: int = 2) -> None:
        self.now = 0
        self.states = np.zeros((lanes, 105, 80, 2), np.uint8)
        self.episodes = np.arange(lanes)

    def with_noops(self, actions: np.ndarray) -> np.ndarray:
        return actions

    def step(self, actions: np.ndarray) -> SimpleNamespace:
        self.now += 1
        self.states[:] = self.now
        lanes = len(actions)
        ends = np.arange(lanes) == self.now % 4
        self.episodes = self.episodes + lanes * ends
        return SimpleNamespace(
            rewards=(self.now * 10 + actions).astype(np.float32),
            life_lost=ends,
            terminated=ends & (self.now % 2 == 0),
            truncated=ends & (self.now % 2 == 1),
        )


def estimate(states: np.ndarray) -> np.ndarray:
    """Q-values whose best action is (step + l) modulo 3 for lane l."""
    steps = states[:, 0, 0, 0].astype(int) + np.arange(len(states))
    return (np.eye(3)[steps % 3] + steps[:, None]).astype(np.float32)


def policy_of(groups: list[Any], epsilon: LinearSchedule = GREEDY, states: int = 0) -> CyclePolicy:
    generators = [np.random.default_rng(group) for group in range(len(groups))]
    return CyclePolicy(epsilon, states, sum(len(lanes.episodes) for lanes in groups), generators)


def played(groups: list[Any], steps: int, epsilon: LinearSchedule = GREEDY, states: int = 0) -> Experience:
    experience = Experience.empty(steps, sum(len(lanes.episodes) for lanes in groups), 3)
    play_cycle(groups, estimate, experience, policy_of(groups, epsilon, states))
    return experience


def test_experience_has_states_actions_and_outcomes() -> None:
    lanes: Any = CountingLanes()
    experience = played([lanes], 5)
    assert experience.states[:, 0, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]
    assert experience.actions.tolist() == [[0, 1], [1, 2], [2, 0], [0, 1], [1, 2]]
    assert experience.rewards.tolist() == [[10, 11], [21, 22], [32, 30], [40, 41], [51, 52]]
    assert experience.q_values[2].tolist() == [[2, 2, 3], [4, 3, 3]]
    assert experience.life_lost.tolist() == [[False, True], [False] * 2, [False] * 2, [True, False], [False, True]]
    assert experience.terminated.tolist() == [[False] * 2, [False] * 2, [False] * 2, [True, False], [False] * 2]
    assert experience.truncated.tolist() == [[False, True], [False] * 2, [False] * 2, [False] * 2, [False, True]]
    assert experience.episode.tolist() == [[0, 1], [0, 3], [0, 3], [0, 3], [2, 3]]
    assert experience.bootstrap_q_values.tolist() == estimate(lanes.states).tolist() == [[5, 5, 6], [7, 6, 6]]


def test_each_group_plays_its_own_lanes() -> None:
    groups = [CountingLanes(3), CountingLanes(3), CountingLanes(1)]
    together = played(groups, 6)
    for lanes, first, last in ((3, 0, 3), (3, 3, 6), (1, 6, 7)):
        alone = played([CountingLanes(lanes)], 6)
        for field in fields(Experience):
            axis = 0 if field.name == "bootstrap_q_values" else 1
            part = np.take(getattr(together, field.name), range(first, last), axis=axis)
            assert np.array_equal(part, getattr(alone, field.name)), field.name


def test_groups_play_the_same_as_one_group() -> None:
    weights = np.random.default_rng(0).normal(size=(105 * 80 * 2, 4)).astype(np.float32)
    config = make_config("fast", {"lanes": 4, "seed": 3, "threads": 2, "episode_frames_limit": 100})
    results = []
    for count in (1, 2, 3):
        groups = open_lanes(config.model_copy(update={"lane_groups": count}), first_histories(4))
        experience = Experience.empty(40, 4, 4)
        play_cycle(groups, lambda states: states.reshape(len(states), -1) @ weights, experience, policy_of(groups))
        for lanes in groups:
            lanes.close()
        results.append(experience)
    assert len(groups) == 2  # four lanes cannot be divided into three groups of equal size
    for name in ("states", "actions", "rewards", "life_lost", "truncated", "episode"):
        assert all(np.array_equal(getattr(results[0], name), getattr(other, name)) for other in results[1:]), name
    assert results[0].truncated.any() and len(set(results[0].actions.ravel().tolist())) > 1


def test_failing_group_stops_other_groups() -> None:
    failing, other = CountingLanes(), CountingLanes()
    failing.step = lambda actions: 1 / 0
    with pytest.raises(ZeroDivisionError):
        played([failing, other], 20_000)
    assert other.now < 20_000


def test_play_restores_threads_of_torch() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    inside: list[int] = []

    def counting(states: np.ndarray) -> np.ndarray:
        inside.append(torch.get_num_threads())
        return estimate(states)

    try:
        experience = Experience.empty(2, 4, 3)
        groups: list[Any] = [CountingLanes(), CountingLanes()]
        play_cycle(groups, counting, experience, policy_of(groups))
        assert set(inside) == {1} and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_epsilon_follows_states_played_by_all_lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    used = []

    def greedy(q_values: np.ndarray, epsilon: float, generator: np.random.Generator) -> np.ndarray:
        used.append(epsilon)
        return q_values.argmax(axis=1)

    monkeypatch.setattr(dqn.envs.policy, "epsilon_greedy", greedy)
    lanes: Any = CountingLanes(lanes=3)
    schedule = LinearSchedule(start=1, end=0, states=100)
    played([lanes], 4, schedule, 50)
    assert used == pytest.approx([0.5, 0.47, 0.44, 0.41])


def test_policy_draws_from_generator_of_group() -> None:
    def actions(*seeds: int) -> list:
        always = LinearSchedule(start=1, end=1)
        experience = Experience.empty(20, 4, 3)
        groups: list[Any] = [CountingLanes(2), CountingLanes(2)]
        generators = [np.random.default_rng(seed) for seed in seeds]
        play_cycle(groups, estimate, experience, CyclePolicy(always, 0, 4, generators))
        return experience.actions.T.tolist()

    assert actions(1, 2) == actions(1, 2) != actions(1, 1)
    assert actions(1, 2)[:2] == actions(1, 1)[:2]


def test_each_state_is_estimated_once() -> None:
    """Progress is reported after each step."""
    estimated: list[int] = []

    def counted(states: np.ndarray) -> np.ndarray:
        estimated.append(int(states[0, 0, 0, 0]))
        return estimate(states)

    reported: list[tuple[int, int]] = []
    groups: list[Any] = [CountingLanes()]
    experience = Experience.empty(5, 2, 3)
    play_cycle(groups, counted, experience, policy_of(groups), lambda *step: reported.append(step))
    assert estimated == [0, 1, 2, 3, 4, 5]
    assert reported == [(step, 5) for step in range(1, 6)]


def test_empty_experience_has_given_shapes() -> None:
    experience = Experience.empty(4, 3, 5)
    assert experience.states.shape == (4, 3, 105, 80, 2) and experience.q_values.shape == (4, 3, 5)
    assert experience.bootstrap_q_values.shape == (3, 5)
    assert (experience.steps, experience.states_played) == (4, 12)
    without = Experience.empty(4, 3, 5, with_states=False)
    assert without.states.shape == (0, 3, 105, 80, 2) and (without.steps, without.states_played) == (4, 12)
