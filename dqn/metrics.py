"""Metrics of a cycle, as (name, step, value) where the step is the number of states played.

Commands that only read metrics import this module, so it imports torch only in the functions that compute metrics.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from dqn.checkpoint import Counters
    from dqn.config import TrainConfig
    from dqn.envs.experience import Experience, Targets
    from dqn.envs.histories import FinishedEpisode
    from dqn.learning.optimization import OptimizationResult

# Names of metrics in manifests and in MLflow. They are stored, so they do not change.
COUNTER_STATES = "counter/states"
COUNTER_CYCLES = "counter/cycles"
COUNTER_EPISODES = "counter/episodes"
COUNTER_UPDATES = "counter/updates"
SCORE_EPISODE = "score/episode"
SCORE_MEAN_30 = "score/mean_30"
SCORE_MEAN_100 = "score/mean_100"
EPISODE_STEPS = "episode/steps"
SCHEDULE_EPSILON = "schedule/epsilon"
SHARE_LIFE_LOST = "share/life_lost"
SHARE_EPISODE_ENDED = "share/episode_ended"
SHARE_REWARDED = "share/rewarded"
Q_VALUES_BEFORE_MIN = "q_values/before_min"
Q_VALUES_BEFORE_MEAN = "q_values/before_mean"
Q_VALUES_BEFORE_MAX = "q_values/before_max"
Q_VALUES_AFTER_MEAN = "q_values/after_mean"
ESTIMATION_ERROR_MEAN = "estimation_error/mean"
ESTIMATION_ERROR_HIGH_SHARE = "estimation_error/high_share"
LOSS_MEAN = "loss/mean"
LOSS_LAST_100 = "loss/last_100"
OPTIMIZATION_EPOCHS = "optimization/epochs"
OPTIMIZATION_BATCHES = "optimization/batches"
EVALUATION_MEAN = "evaluation/mean"
EVALUATION_MEAN_LOW = "evaluation/mean_low"  # of the 95 % interval
EVALUATION_MEAN_HIGH = "evaluation/mean_high"
TRAINING_CURVES = (  # that show how a training went
    SCORE_EPISODE,
    EVALUATION_MEAN,
    EVALUATION_MEAN_LOW,
    EVALUATION_MEAN_HIGH,
    LOSS_MEAN,
    SCHEDULE_EPSILON,
    Q_VALUES_BEFORE_MIN,
    Q_VALUES_BEFORE_MEAN,
    Q_VALUES_BEFORE_MAX,
    ESTIMATION_ERROR_MEAN,
)
SWEEP_OBJECTIVE = "sweep/objective"  # of each training of a trial: the mean over the seeds of the trial


def schedule_metric(field: str) -> str:
    """Name of the metric of a scheduled field of the configuration."""
    return f"schedule/{field}"


def q_values_metric(when: str, statistic: str) -> str:
    """Name of the metric of Q-values: `before`, `after` or `change`, and `min`, `mean`, `max` or `sd`."""
    return f"q_values/{when}_{statistic}"


def evaluation_metric(statistic: str) -> str:
    """Name of the metric of a statistic of an evaluation."""
    return f"evaluation/{statistic}"


def speed_metric(task: str) -> str:
    """Name of the metric of a task's speed, in states per second."""
    return f"speed/{task}"


class Metric(NamedTuple):
    """One value of one metric."""

    name: str
    step: int  # states played by the run
    value: float


@dataclass(frozen=True)
class Curve:
    """N values of one metric of a run; both arrays (N,)."""

    states: np.ndarray  # states played by the run, ascending
    values: np.ndarray

    def until(self, states: int) -> Curve:
        """The values up to a number of states."""
        kept = self.states <= states
        return Curve(self.states[kept], self.values[kept])

    def thinned(self, most: int) -> Curve:
        """At most `most` of the values, evenly spaced, among them the first and the last."""
        if len(self.states) <= most:
            return self
        kept = np.linspace(0, len(self.states) - 1, most).round().astype(int)
        return Curve(self.states[kept], self.values[kept])


def minutes_at_work(times_ms: np.ndarray) -> np.ndarray:
    """Minutes of work between the first and each of the ascending times (N,), which are in milliseconds.

    A gap of over a minute that is also over ten times the median gap is a pause between an interruption and its
    resume. It counts as one median gap.
    """
    gaps = np.diff(times_ms) / 60_000
    typical = float(np.median(gaps)) if len(gaps) else 0.0
    pauses = gaps > max(1.0, 10 * typical)
    return np.concatenate([[0.0], np.cumsum(np.where(pauses, typical, gaps))])


def score_metrics(
    recent_scores: tuple[float, ...], finished: list[FinishedEpisode]
) -> tuple[list[Metric], tuple[float, ...]]:
    """Metrics of the finished episodes, and the scores for the next call.

    Args:
        recent_scores: the last scores before these episodes, at most RECENT_EPISODES, oldest first.
        finished: episodes in the order in which they finished.

    Returns:
        Score, running means and length of each episode, and the updated `recent_scores`.
    """
    from dqn.checkpoint import RECENT_EPISODES

    scores, metrics = list(recent_scores), []
    for episode in finished:
        scores = [*scores, episode.score][-RECENT_EPISODES:]
        metrics += [
            Metric(SCORE_EPISODE, episode.states, episode.score),
            Metric(SCORE_MEAN_30, episode.states, float(np.mean(scores[-30:]))),
            Metric(SCORE_MEAN_100, episode.states, float(np.mean(scores))),
            Metric(EPISODE_STEPS, episode.states, episode.steps),
        ]
    return metrics, tuple(scores)


def play_metrics(config: TrainConfig, experience: Experience, states: int) -> list[Metric]:
    """Values of the schedules at the start of a cycle, and shares of its states in which something happened.

    `states` is the number of states played before the cycle.
    """
    after = states + experience.states_played
    scheduled = [Metric(schedule_metric(name), after, value) for name, value in config.scheduled(states).items()]
    shares = {
        SHARE_LIFE_LOST: experience.life_lost,
        SHARE_EPISODE_ENDED: experience.terminated | experience.truncated,
        SHARE_REWARDED: experience.rewards != 0,
    }
    return scheduled + [Metric(name, after, float(table.mean())) for name, table in shares.items()]


def sweep_metrics(config: TrainConfig, experience: Experience, targets: Targets, states: int) -> list[Metric]:
    """Statistics of the Q-values before and after the sweep and of their changes, and of the estimation errors.

    `states` is the number of states played before the cycle.
    """
    from dqn.learning.replay import high_errors

    after = states + experience.states_played
    tables = {
        "before": experience.q_values,
        "after": targets.q_values,
        "change": targets.q_values - experience.q_values,
    }
    metrics = [
        Metric(q_values_metric(when, name), after, float(of(table)))
        for when, table in tables.items()
        for name, of in (("min", np.min), ("mean", np.mean), ("max", np.max), ("sd", np.std))
    ]
    errors = targets.estimation_errors
    return [
        *metrics,
        Metric(ESTIMATION_ERROR_MEAN, after, float(errors.mean())),
        Metric(ESTIMATION_ERROR_HIGH_SHARE, after, float(high_errors(errors, config.error_threshold).mean())),
    ]


def optimization_metrics(result: OptimizationResult, counters: Counters) -> list[Metric]:
    """Losses and length of an optimization run, and the totals of the training run after it."""
    from dqn.learning.optimization import LOSS_WINDOW

    states, tail = counters.states, result.losses[-LOSS_WINDOW:]
    return [
        Metric(COUNTER_STATES, states, counters.states),
        Metric(COUNTER_CYCLES, states, counters.cycle),
        Metric(COUNTER_EPISODES, states, counters.episodes),
        Metric(COUNTER_UPDATES, states, counters.updates),
        Metric(LOSS_MEAN, states, float(result.losses.mean(dtype=np.float64))),
        Metric(LOSS_LAST_100, states, float(tail.mean(dtype=np.float64))),
        Metric(OPTIMIZATION_EPOCHS, states, result.epochs),
        Metric(OPTIMIZATION_BATCHES, states, len(result.losses)),
    ]


def cycle_line(summary: Mapping[str, float]) -> str:
    """Format the metrics of a finished cycle, by name, in one line."""
    score = summary.get(SCORE_MEAN_100, math.nan)
    return (
        f"cycle {summary[COUNTER_CYCLES]:.0f}"
        f" | {summary[COUNTER_STATES]:,.0f} states"
        f" | epsilon {summary[SCHEDULE_EPSILON]:.3f}"
        f" | mean score {'-' if math.isnan(score) else f'{score:.2f}'}"
        f" | loss {summary[LOSS_MEAN]:.4f}"
    )
