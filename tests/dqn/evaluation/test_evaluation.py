from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dqn.config import make_config
from dqn.evaluation.evaluation import Evaluation, Protocol, evaluation_groups, play_episodes
from dqn.evaluation.human_scores import human_normalized


class ScriptedLanes:
    """Lanes whose episode e has `lengths[e]` steps (default 1) with reward e + 1; those in `cut` are truncated."""

    def __init__(self, lanes: int, lengths: list[int], cut: tuple[int, ...] = ()) -> None:
        self.episodes = np.arange(lanes)
        self.states = np.zeros((lanes, 105, 80, 2), np.uint8)
        self._lengths, self._cut, self._done = lengths + [1] * 50, cut, np.zeros(lanes, np.int64)

    def with_noops(self, actions: np.ndarray) -> np.ndarray:
        return actions

    def step(self, actions: np.ndarray) -> SimpleNamespace:
        lanes = len(actions)
        lengths = np.array([self._lengths[episode] for episode in self.episodes])
        cut = np.isin(self.episodes, self._cut)
        truncated = cut & (self._done == lengths)
        self._done += 1
        terminated = ~cut & (self._done == lengths)
        rewards = np.where(truncated, 0, self.episodes + 1).astype(np.float32)
        ended = terminated | truncated
        self._done[ended] = 0
        self.episodes = self.episodes + lanes * ended
        return SimpleNamespace(rewards=rewards, terminated=terminated, truncated=truncated, life_lost=terminated)

    def close(self) -> None:
        pass


def no_preference(states: np.ndarray) -> np.ndarray:
    return np.zeros((len(states), 4), np.float32)


def scores_of(lanes: Any, episodes: int, **options: Any) -> Evaluation:
    return play_episodes([lambda: lanes], no_preference, Protocol("ALE/Breakout-v5", episodes, 0.01, 5), **options)


LENGTHS = [9, 1, 1, 4, 2, 1, 3]


@pytest.mark.parametrize("lanes", [1, 2, 3, 5, 6])
def test_episodes_are_selected_in_advance(lanes: int) -> None:
    evaluation = scores_of(ScriptedLanes(lanes, LENGTHS), 6)
    assert evaluation.steps == [9, 1, 1, 4, 2, 1]
    assert evaluation.scores == [9, 2, 3, 16, 10, 6]
    assert evaluation.cut_off == 0


def test_truncated_episodes_are_counted() -> None:
    """A truncated row is no step of its episode."""
    evaluation = scores_of(ScriptedLanes(2, LENGTHS, cut=(0, 3, 6)), 5)
    assert evaluation.cut_off == 2  # episode 6 is not evaluated
    assert evaluation.steps == [9, 1, 1, 4, 2] and evaluation.scores == [9, 2, 3, 16, 10]


def test_progress_counts_finished_episodes() -> None:
    reported = []
    scores_of(ScriptedLanes(2, LENGTHS), 4, on_step=lambda done, episodes: reported.append((done, episodes)))
    assert reported[-1] == (4, 4) and reported[0] == (1, 4)
    assert [done for done, _ in reported] == sorted(done for done, _ in reported)


def test_policy_uses_network_and_epsilon() -> None:
    chosen: list[np.ndarray] = []

    class Recording(ScriptedLanes):
        def step(self, actions: np.ndarray) -> SimpleNamespace:
            chosen.append(actions)
            return super().step(actions)

    def prefers_2(states: np.ndarray) -> np.ndarray:
        return np.eye(4, dtype=np.float32)[[2] * len(states)]

    shares = []
    for epsilon in (0.0, 1.0):
        lanes: Any = Recording(2, [200, 200])
        chosen.clear()
        play_episodes([lambda lanes=lanes: lanes], prefers_2, Protocol("ALE/Breakout-v5", 2, epsilon))
        shares.append(float((np.stack(chosen) == 2).mean()))
    assert shares[0] == 1 and 0.1 < shares[1] < 0.4


def test_evaluation_is_reproducible() -> None:
    """The result does not depend on the number of threads."""

    def evaluate(seed: int, limit: int, threads: int) -> Evaluation:
        protocol = Protocol("ALE/Breakout-v5", 4, 0.9, seed)
        config = make_config("fast", {"episode_frames_limit": limit})
        return play_episodes(evaluation_groups(protocol, config, threads), no_preference, protocol, threads)

    first = evaluate(1, 108_000, 1)
    assert first == evaluate(1, 108_000, 2)
    assert first.cut_off == 0 and len(set(first.steps)) > 2 and min(first.steps) > 50
    assert first != evaluate(2, 108_000, 1)
    limited = evaluate(1, 200, 2)
    assert limited.cut_off == 4 and limited.steps == [50] * 4


@pytest.mark.parametrize(("episodes", "lanes"), [(1, [[0]]), (3, [[0, 1], [2]]), (30, [[*range(5)], [*range(5, 10)]])])
def test_groups_share_the_lanes(episodes: int, lanes: list[list[int]]) -> None:
    groups = evaluation_groups(Protocol("ALE/Breakout-v5", episodes, 0.01), make_config(), 2)
    opened = [group() for group in groups]
    assert [group.episodes.tolist() for group in opened] == lanes
    for group in opened:
        group.close()


def test_failing_group_stops_others_and_raises() -> None:
    class Endless(ScriptedLanes):
        closed = False

        def step(self, actions: np.ndarray) -> SimpleNamespace:
            return SimpleNamespace(**{**vars(super().step(actions)), "terminated": np.zeros(len(actions), bool)})

        def close(self) -> None:
            self.closed = True

    def broken() -> Any:
        raise OSError("no emulator")

    endless: Any = Endless(1, [10**9])
    with pytest.raises(OSError, match="no emulator"):
        play_episodes([lambda: endless, broken], no_preference, Protocol("ALE/Breakout-v5", 2, 0.01), threads=2)
    assert endless.closed


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([1, 2, 3, 4], {"mean": 2.5, "median": 2.5, "sd": (5 / 3) ** 0.5, "min": 1, "max": 4}),
        ([0, 0, 9], {"mean": 3, "median": 0, "sd": 27**0.5, "min": 0, "max": 9}),
        ([7], {"mean": 7, "median": 7, "sd": 0, "min": 7, "max": 7, "mean_low": 7, "mean_high": 7}),
    ],
)
def test_summary_has_mean_median_sd_and_range(scores: list[float], expected: dict[str, float]) -> None:
    summary = of_scores(scores).summary()
    assert {name: summary[name] for name in expected} == pytest.approx(expected)
    assert summary["min"] <= summary["mean_low"] <= summary["mean"] <= summary["mean_high"] <= summary["max"]


def test_interval_of_mean_matches_normal_interval() -> None:
    """For many normally distributed scores."""
    scores = np.random.default_rng(0).normal(50, 10, 400)
    summary = of_scores(scores.tolist()).summary()
    half = 1.96 * scores.std(ddof=1) / 400**0.5
    assert summary["mean_low"] == pytest.approx(scores.mean() - half, abs=0.15)
    assert summary["mean_high"] == pytest.approx(scores.mean() + half, abs=0.15)


def test_summary_is_deterministic() -> None:
    evaluation = of_scores([1.0, 5.0, 2.0, 9.0])
    assert evaluation.summary() == evaluation.summary()


def test_as_dict_has_summary_and_episodes() -> None:
    evaluation = Evaluation(Protocol("ALE/Breakout-v5", 2, 0.05, 4), [1.0, 3.0], [10, 20], 1)
    found = evaluation.as_dict()
    assert (found["mean"], found["episodes"], found["cut_off"], found["epsilon"], found["seed"]) == (2, 2, 1, 0.05, 4)
    assert found["scores"] == [1, 3] and found["steps"] == [10, 20]
    assert Evaluation.from_dict(json.loads(json.dumps(found))) == evaluation


def test_human_normalized_maps_random_to_0_and_human_to_1() -> None:
    assert human_normalized("ALE/Breakout-v5", 1.7) == 0 and human_normalized("Breakout-v0", 30.5) == 1
    assert human_normalized("ALE/Pong-v5", 50.0) == pytest.approx((50 + 20.7) / 35.3)
    assert human_normalized("ALE/Tetris-v5", 1.0) is None
    assert "human_normalized" not in of_scores([1.0], "ALE/Tetris-v5").summary()


def test_only_states_of_counted_episodes_are_estimated() -> None:
    batches: list[int] = []

    def counting(states: np.ndarray) -> np.ndarray:
        batches.append(len(states))
        return no_preference(states)

    lanes: Any = ScriptedLanes(2, LENGTHS)
    play_episodes([lambda: lanes], counting, Protocol("ALE/Breakout-v5", 2, 0.01))
    assert batches == [2] + [1] * 8


def of_scores(scores: list[float], game: str = "ALE/Breakout-v5") -> Evaluation:
    return Evaluation(Protocol(game, len(scores), 0.01, 3), scores, [1] * len(scores), 0)
