"""What people look at: each cycle's figures, as (name, step, value) with states played as the step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dqn.checkpoint import RECENT_EPISODES, Counters
from dqn.config import TrainConfig
from dqn.envs.experience import Experience, Targets
from dqn.envs.histories import FinishedEpisode
from dqn.learning.optimization import LOSS_WINDOW, OptimizationResult
from dqn.learning.replay import high_errors


class Metric(NamedTuple):
    """One point of one curve."""

    name: str
    step: int
    value: float


@dataclass(frozen=True)
class Curve:
    """One metric of a run; all arrays (N,)."""

    states: np.ndarray  # played when the value was taken, ascending
    values: np.ndarray


def minutes_at_work(times_ms: np.ndarray) -> np.ndarray:
    """Minutes of work until each of the ascending times (N,), in milliseconds, since the first of them.

    A gap of over a minute that is also over ten times as long as the median one is the pause between an
    interruption and its resume, and counts as a median one.
    """
    gaps = np.diff(times_ms) / 60_000
    typical = float(np.median(gaps)) if len(gaps) else 0.0
    pauses = gaps > max(1.0, 10 * typical)
    return np.concatenate([[0.0], np.cumsum(np.where(pauses, typical, gaps))])


def score_metrics(
    recent_scores: tuple[float, ...], finished: list[FinishedEpisode]
) -> tuple[list[Metric], tuple[float, ...]]:
    """Score of every finished episode with the running means of 30 and 100, and the scores to carry on."""
    scores, metrics = list(recent_scores), []
    for episode in finished:
        scores = [*scores, episode.score][-RECENT_EPISODES:]
        metrics += [
            Metric("score/episode", episode.states, episode.score),
            Metric("score/mean_30", episode.states, float(np.mean(scores[-30:]))),
            Metric("score/mean_100", episode.states, float(np.mean(scores))),
            Metric("episode/steps", episode.states, episode.steps),
        ]
    return metrics, tuple(scores)


def play_metrics(config: TrainConfig, experience: Experience, states: int) -> list[Metric]:
    """Schedules at the start of a cycle, and how often something happened in it."""
    after = states + experience.states_played
    scheduled = [Metric(f"schedule/{name}", after, value) for name, value in config.scheduled(states).items()]
    shares = {
        "share/life_lost": experience.life_lost,
        "share/episode_ended": experience.terminated | experience.truncated,
        "share/rewarded": experience.rewards != 0,
    }
    return scheduled + [Metric(name, after, float(table.mean())) for name, table in shares.items()]


def sweep_metrics(config: TrainConfig, experience: Experience, targets: Targets, states: int) -> list[Metric]:
    """Q-values before and after the sweep, what it changed, and how many errors are high."""
    after = states + experience.states_played
    tables = {
        "before": experience.q_values,
        "after": targets.q_values,
        "change": targets.q_values - experience.q_values,
    }
    metrics = [
        Metric(f"q_values/{when}_{name}", after, float(of(table)))
        for when, table in tables.items()
        for name, of in (("min", np.min), ("mean", np.mean), ("max", np.max), ("sd", np.std))
    ]
    errors = targets.estimation_errors
    return [
        *metrics,
        Metric("estimation_error/mean", after, float(errors.mean())),
        Metric("estimation_error/high_share", after, float(high_errors(errors, config.error_threshold).mean())),
    ]


def optimization_metrics(result: OptimizationResult, counters: Counters) -> list[Metric]:
    """Loss over an optimization run, how long it was, and what the run has done after it."""
    states, tail = counters.states, result.losses[-LOSS_WINDOW:]
    return [
        Metric("counter/states", states, counters.states),
        Metric("counter/cycles", states, counters.cycle),
        Metric("counter/episodes", states, counters.episodes),
        Metric("counter/updates", states, counters.updates),
        Metric("loss/mean", states, float(result.losses.mean(dtype=np.float64))),
        Metric("loss/last_100", states, float(tail.mean(dtype=np.float64))),
        Metric("optimization/epochs", states, result.epochs),
        Metric("optimization/batches", states, len(result.losses)),
    ]
