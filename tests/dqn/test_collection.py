from __future__ import annotations

from dataclasses import fields
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import dqn.collection
from dqn.collection import play
from dqn.environments import Lanes
from dqn.episodes import first_histories
from dqn.experience import Experience
from dqn.schedules import LinearSchedule

GREEDY = LinearSchedule(start=0, end=0)


class CountingLanes:
    """Lanes whose state is the step they are in, and whose outcome tells step and action."""

    action_names = ("A", "B", "C")

    def __init__(self, lanes: int = 2) -> None:
        self.now = 0
        self.states = np.zeros((lanes, 105, 80, 2), np.uint8)
        self.episodes = np.arange(lanes)

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
    """Lane l finds action (step + l) modulo 3 the best."""
    steps = states[:, 0, 0, 0].astype(int) + np.arange(len(states))
    return (np.eye(3)[steps % 3] + steps[:, None]).astype(np.float32)


def copied(piece: Experience) -> Experience:
    return Experience(**{field.name: getattr(piece, field.name).copy() for field in fields(piece)})


def pieces_of(lanes: Any, steps: int, piece_steps: int, epsilon: LinearSchedule = GREEDY) -> list[Experience]:
    pieces = play(lanes, estimate, steps, piece_steps, epsilon, 0, np.random.default_rng(0))
    return [copied(piece) for piece in pieces]


def test_rows_hold_what_was_seen_done_and_earned() -> None:
    lanes: Any = CountingLanes()
    (experience,) = pieces_of(lanes, 5, 5)
    assert experience.states[:, 0, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]
    assert experience.actions.tolist() == [[0, 1], [1, 2], [2, 0], [0, 1], [1, 2]]
    assert experience.rewards.tolist() == [[10, 11], [21, 22], [32, 30], [40, 41], [51, 52]]
    assert experience.q_values[2].tolist() == [[2, 2, 3], [4, 3, 3]]
    assert experience.life_lost.tolist() == [[False, True], [False] * 2, [False] * 2, [True, False], [False, True]]
    assert experience.terminated.tolist() == [[False] * 2, [False] * 2, [False] * 2, [True, False], [False] * 2]
    assert experience.truncated.tolist() == [[False, True], [False] * 2, [False] * 2, [False] * 2, [False, True]]
    assert experience.episode.tolist() == [[0, 1], [0, 3], [0, 3], [0, 3], [2, 3]]
    assert experience.bootstrap_q_values.tolist() == estimate(lanes.states).tolist() == [[5, 5, 6], [7, 6, 6]]


@pytest.mark.parametrize(("piece_steps", "lengths"), [(1, [1] * 7), (3, [3, 3, 1]), (7, [7]), (100, [7])])
def test_pieces_join_to_the_same_as_one_piece(piece_steps: int, lengths: list[int]) -> None:
    epsilon = LinearSchedule(start=1, end=0, states=10)
    (whole,) = pieces_of(CountingLanes(), 7, 7, epsilon)
    pieces = pieces_of(CountingLanes(), 7, piece_steps, epsilon)
    assert [piece.steps for piece in pieces] == lengths
    for field in fields(Experience):
        if field.name != "bootstrap_q_values":
            joined = np.concatenate([getattr(piece, field.name) for piece in pieces])
            assert np.array_equal(joined, getattr(whole, field.name)), field.name
    for before, after in pairwise(pieces):
        assert np.array_equal(before.bootstrap_q_values, after.q_values[0])
    assert np.array_equal(pieces[-1].bootstrap_q_values, whole.bootstrap_q_values)


def test_real_games_play_the_same_in_pieces() -> None:
    played = []
    for piece_steps in (30, 11):
        lanes = Lanes("ALE/Breakout-v5", first_histories(2), 3)
        weights = np.random.default_rng(0).normal(size=(105 * 80 * 2, 4)).astype(np.float32)
        pieces = play(
            lanes,
            lambda states, weights=weights: states.reshape(len(states), -1) @ weights,
            30,
            piece_steps,
            LinearSchedule(start=0.5, end=0.5),
            0,
            np.random.default_rng(0),
        )
        played.append([copied(piece) for piece in pieces])
        lanes.close()
    for name in ("states", "q_values", "actions", "rewards", "life_lost"):
        whole, joined = (np.concatenate([getattr(piece, name) for piece in pieces]) for pieces in played)
        assert np.array_equal(whole, joined), name
    assert len(set(played[0][0].actions.ravel().tolist())) > 1


def test_epsilon_follows_the_states_played_by_all_lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def greedy(q_values: np.ndarray, epsilon: float, generator: np.random.Generator) -> np.ndarray:
        asked.append(epsilon)
        return q_values.argmax(axis=1)

    monkeypatch.setattr(dqn.collection, "epsilon_greedy", greedy)
    lanes: Any = CountingLanes(lanes=3)
    schedule = LinearSchedule(start=1, end=0, states=100)
    list(play(lanes, estimate, 4, 2, schedule, 50, np.random.default_rng(0)))
    assert asked == pytest.approx([0.5, 0.47, 0.44, 0.41])


def test_policy_draws_come_from_the_generator() -> None:
    def actions(seed: int) -> list:
        lanes: Any = CountingLanes(lanes=4)
        always = LinearSchedule(start=1, end=1)
        (experience,) = play(lanes, estimate, 20, 20, always, 0, np.random.default_rng(seed))
        return experience.actions.tolist()

    assert actions(1) == actions(1) != actions(2)


def test_network_is_asked_once_for_each_state() -> None:
    asked: list[int] = []

    def counted(states: np.ndarray) -> np.ndarray:
        asked.append(int(states[0, 0, 0, 0]))
        return estimate(states)

    lanes: Any = CountingLanes()
    list(play(lanes, counted, 5, 2, GREEDY, 0, np.random.default_rng(0)))
    assert asked == [0, 1, 2, 3, 4, 5]


def test_empty_experience_has_the_shapes_of_its_size() -> None:
    experience = Experience.empty(4, 3, 5)
    assert experience.states.shape == (4, 3, 105, 80, 2) and experience.q_values.shape == (4, 3, 5)
    assert experience.bootstrap_q_values.shape == (3, 5)
    assert (experience.steps, experience.states_played) == (4, 12)
    without = Experience.empty(4, 3, 5, with_states=False)
    assert without.states.shape == (0, 3, 105, 80, 2) and (without.steps, without.states_played) == (4, 12)


def test_first_steps_are_a_view_with_the_same_bootstrap() -> None:
    experience = Experience.empty(4, 3, 5)
    experience.actions[:] = np.arange(12).reshape(4, 3)
    first = experience.up_to(2)
    assert first.steps == 2 and first.actions.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert np.shares_memory(first.states, experience.states)
    assert first.bootstrap_q_values is experience.bootstrap_q_values
