from __future__ import annotations

import numpy as np
import pytest

from dqn.checkpoint import Counters
from dqn.config import make_config
from dqn.envs.experience import Experience, Targets
from dqn.envs.histories import FinishedEpisode
from dqn.learning.optimization import OptimizationResult
from dqn.metrics import Metric, minutes_at_work, optimization_metrics, play_metrics, score_metrics, sweep_metrics


def by_name(metrics: list[Metric]) -> dict[str, float]:
    assert len({metric.name for metric in metrics}) == len(metrics)
    return {metric.name: metric.value for metric in metrics}


def test_score_metrics_of_finished_episodes() -> None:
    finished = [FinishedEpisode(5, states=70, score=4.0, steps=9), FinishedEpisode(3, states=90, score=10.0, steps=20)]
    metrics, scores = score_metrics((1.0,), finished)
    assert metrics == [
        Metric("score/episode", 70, 4),
        Metric("score/mean_30", 70, 2.5),
        Metric("score/mean_100", 70, 2.5),
        Metric("episode/steps", 70, 9),
        Metric("score/episode", 90, 10),
        Metric("score/mean_30", 90, 5),
        Metric("score/mean_100", 90, 5),
        Metric("episode/steps", 90, 20),
    ]
    assert scores == (1, 4, 10)


def test_score_means_are_over_30_and_100_episodes() -> None:
    finished = [FinishedEpisode(0, states=5, score=200.0, steps=1)]
    metrics, scores = score_metrics(tuple(float(score) for score in range(100)), finished)
    assert by_name(metrics)["score/mean_30"] == np.mean([*range(71, 100), 200])
    assert by_name(metrics)["score/mean_100"] == np.mean([*range(1, 100), 200])
    assert len(scores) == 100 and scores[0] == 1 and scores[-1] == 200


def test_score_metrics_without_finished_episode() -> None:
    assert score_metrics((1.0, 2.0), []) == ([], (1.0, 2.0))


def test_play_metrics_have_schedules_and_shares() -> None:
    experience = Experience.empty(2, 5, 3, with_states=False)
    experience.life_lost[0, :2] = True
    experience.terminated[1, 0] = experience.truncated[1, 1] = experience.terminated[0, 4] = True
    experience.rewards[0, 1], experience.rewards[0, 2] = -1, 5
    metrics = play_metrics(make_config("fast", {"epsilon": "1:0:1000"}), experience, 250)
    assert {metric.step for metric in metrics} == {260}
    values = by_name(metrics)
    assert values["schedule/epsilon"] == 0.75
    assert {name for name in values if name.startswith("schedule/")} == {
        "schedule/epsilon",
        "schedule/learning_rate",
        "schedule/loss_limit",
        "schedule/max_epochs",
        "schedule/replay_fraction",
    }
    assert [values[f"share/{name}"] for name in ("life_lost", "episode_ended", "rewarded")] == [0.2, 0.3, 0.2]


def test_sweep_metrics_have_q_value_statistics() -> None:
    experience = Experience.empty(2, 1, 2, with_states=False)
    experience.q_values[:, 0] = [[0, 2], [4, 6]]
    targets = Targets(experience.q_values + np.float32(1), np.array([[0.05], [0.35]], np.float32))
    metrics = sweep_metrics(make_config("fast", {"error_threshold": 0.2}), experience, targets, 10)
    assert {metric.step for metric in metrics} == {12}
    values = by_name(metrics)
    expected = {
        "q_values/before_min": 0,
        "q_values/before_mean": 3,
        "q_values/before_max": 6,
        "q_values/before_sd": 5**0.5,
        "q_values/after_min": 1,
        "q_values/after_mean": 4,
        "q_values/after_max": 7,
        "q_values/after_sd": 5**0.5,
        "q_values/change_min": 1,
        "q_values/change_mean": 1,
        "q_values/change_max": 1,
        "q_values/change_sd": 0,
        "estimation_error/mean": 0.2,
        "estimation_error/high_share": 0.5,
    }
    assert values == pytest.approx(expected)


def test_optimization_metrics_have_losses_and_counters() -> None:
    losses = np.concatenate([np.full(50, 9), np.full(100, 3)]).astype(np.float32)
    metrics = optimization_metrics(OptimizationResult(losses, 1.5, 300), Counters(2, 640, 7, 1234))
    assert {metric.step for metric in metrics} == {640}
    assert by_name(metrics) == {
        "counter/states": 640,
        "counter/cycles": 2,
        "counter/episodes": 7,
        "counter/updates": 1234,
        "loss/mean": 5,
        "loss/last_100": 3,
        "optimization/epochs": 1.5,
        "optimization/batches": 150,
    }


@pytest.mark.parametrize(
    ("seconds", "minutes"),
    [
        ([0], [0]),
        ([0, 30], [0, 0.5]),
        ([0, 30, 60, 90, 3690, 3720], [0, 0.5, 1, 1.5, 2, 2.5]),  # an hour's pause counts as one more cycle
        ([0, 3, 6, 9, 39, 42], [0, 0.05, 0.1, 0.15, 0.65, 0.7]),  # half a minute can be an evaluation, so it counts
        ([0, 600, 1200, 4200], [0, 10, 20, 70]),  # cycles become longer
    ],
)
def test_minutes_at_work_exclude_pauses(seconds: list[float], minutes: list[float]) -> None:
    assert np.allclose(minutes_at_work(np.array(seconds) * 1000.0), minutes)
