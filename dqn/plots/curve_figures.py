"""Figures of the metrics of training runs. All functions return a new matplotlib Figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, ScalarFormatter

from dqn.metrics import (
    ESTIMATION_ERROR_MEAN,
    EVALUATION_MEAN,
    EVALUATION_MEAN_HIGH,
    EVALUATION_MEAN_LOW,
    LOSS_MEAN,
    Q_VALUES_BEFORE_MAX,
    Q_VALUES_BEFORE_MEAN,
    Q_VALUES_BEFORE_MIN,
    SCHEDULE_EPSILON,
    SCORE_EPISODE,
    Curve,
)
from dqn.plots.figures import BLUE, GRAY, GREEN, LIGHT, ORANGE, RED, new_figure, plain

STATES = "states played"
MINUTES = "minutes of work"
WINDOW_EPISODES = 100
RUN_COLORS = (BLUE, ORANGE, GREEN, RED, "#8250df", GRAY, "#0a9396", "#b5179e")  # colors of the runs in a comparison


@dataclass(frozen=True)
class MeanCurve:
    """A running mean with its 95 % confidence interval; all arrays (N,)."""

    states: np.ndarray  # states played
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def running_mean(scores: Curve, window: int = WINDOW_EPISODES, points: int = 400) -> MeanCurve:
    """Mean score of the last `window` episodes, with its normal 95 % confidence interval.

    It is computed at up to `points` evenly spaced episodes. With few episodes, the first mean is that of the first
    fifth of the episodes, instead of a full window.
    """
    episodes = len(scores.values)
    ends = np.unique(np.linspace(min(window, -(-episodes // 5)), episodes, points).astype(int))
    parts = [scores.values[max(0, end - window) : end] for end in ends if end > 0]
    mean = np.array([part.mean() for part in parts])
    half = np.array([1.96 * part.std(ddof=1) / len(part) ** 0.5 if len(part) > 1 else 0.0 for part in parts])
    return MeanCurve(scores.states[ends[ends > 0] - 1], mean, mean - half, mean + half)


def score_curve(curves: Mapping[str, Curve], game: str) -> Figure:
    """Scores by states played: all training episodes, their running mean, and the evaluations."""
    figure = new_figure(9, 4.8, f"{game}: scores while training")
    axes = _over_states(figure.subplots(), "score of an episode [points]")
    if episodes := curves.get(SCORE_EPISODE):
        axes.plot(episodes.states, episodes.values, ".", ms=2.5, color=LIGHT, label="training episodes", zorder=0)
        mean = running_mean(episodes)
        axes.fill_between(mean.states, mean.low, mean.high, color=BLUE, alpha=0.2, lw=0)
        label = f"mean of {WINDOW_EPISODES} with 95 % interval"
        axes.plot(mean.states, mean.mean, color=BLUE, lw=2, label=label, marker=_marker(mean.states))
    if evaluated := curves.get(EVALUATION_MEAN):
        label = "evaluation with 95 % interval"
        _evaluations(axes, evaluated.states, evaluated, curves, ORANGE, label=label, ls="none")
    if (epsilon := curves.get(SCHEDULE_EPSILON)) and len(epsilon.values) > 1:
        other = axes.twinx()
        other.plot(epsilon.states, epsilon.values, color=GRAY, lw=1, ls=":", label="epsilon (right)")
        other.set_ylim(0, 1.05)
        other.set_ylabel("probability of a random action", fontsize=9, color=GRAY)
        other.spines[["top", "left"]].set_visible(False)
        other.tick_params(colors=GRAY, labelsize=8)
        axes.plot([], [], color=GRAY, lw=1, ls=":", label="epsilon (right)")
    axes.set_xlim(left=0)
    figure.legend(*axes.get_legend_handles_labels(), frameon=False, fontsize=9, loc="outside lower center", ncols=4)
    return figure


def q_value_curves(curves: Mapping[str, Curve], game: str) -> Figure:
    """Q-values, estimation errors and loss by states played."""
    figure = new_figure(9, 7.2, f"{game}: Q-values while training")
    top, middle, bottom = figure.subplots(3, 1, sharex=True)
    _over_states(top, "Q-value [reward]")
    estimates = (Q_VALUES_BEFORE_MIN, Q_VALUES_BEFORE_MEAN, Q_VALUES_BEFORE_MAX)
    if set(estimates) <= set(curves):
        low, mean, high = (curves[name] for name in estimates)
        top.fill_between(low.states, low.values, high.values, color=LIGHT, lw=0, label="lowest to highest")
        top.plot(mean.states, mean.values, color=BLUE, lw=1.8, label="mean estimate when played")
        top.legend(frameon=False, fontsize=9, loc="upper left")
    for axes, name, label, color in (
        (middle, ESTIMATION_ERROR_MEAN, "mean estimation error\n[reward]", GREEN),
        (bottom, LOSS_MEAN, "mean loss [reward²]", RED),
    ):
        _over_states(axes, label)
        if curve := curves.get(name):
            axes.plot(curve.states, curve.values, color=color, lw=1.3)
        axes.set_ylim(bottom=0)
    top.set_xlim(left=0)
    top.set_xlabel("")
    middle.set_xlabel("")
    return figure


def score_comparison(
    runs: Mapping[str, Mapping[str, Curve]], game: str, minutes: Mapping[str, Curve] | None = None
) -> Figure:
    """Scores of several runs, by states played or by minutes of work.

    Args:
        runs: by name of the run, its curves by metric name: `score/episode` and, if it was evaluated, `evaluation/…`.
        game: title of the game.
        minutes: by name of the run, the minutes of work until a number of states was played; without it, the x axis
            shows states played.
    """
    evaluated = any(EVALUATION_MEAN in curves for curves in runs.values())
    figure = new_figure(10, 7.6 if evaluated else 4.6, f"{game}: scores against {MINUTES if minutes else STATES}")
    panels = figure.subplots(2 if evaluated else 1, 1, sharex=True, squeeze=False)[:, 0]
    training = _over_states(panels[-1], f"mean score of {WINDOW_EPISODES}\ntraining episodes [points]")
    for color, (name, curves) in zip(RUN_COLORS, runs.items(), strict=False):
        x = partial(_minutes_of, minutes[name]) if minutes else _same
        training.plot([], [], color=color, lw=2, label=name)
        if episodes := curves.get(SCORE_EPISODE):
            mean = running_mean(episodes)
            training.fill_between(x(mean.states), mean.low, mean.high, color=color, alpha=0.15, lw=0)
            training.plot(x(mean.states), mean.mean, color=color, lw=1.8, marker=_marker(mean.states))
        if tested := curves.get(EVALUATION_MEAN):
            _evaluations(panels[0], x(tested.states), tested, curves, color)
    if evaluated:
        _over_states(panels[0], "mean score of\nan evaluation [points]").set_xlabel("")
    training.set_xlabel(MINUTES if minutes else STATES)
    training.set_xlim(left=0)
    if minutes:
        training.xaxis.set_major_formatter(ScalarFormatter())
    figure.legend(*training.get_legend_handles_labels(), frameon=False, fontsize=9, loc="outside lower center", ncols=4)
    return figure


def group_comparison(groups: Mapping[str, Sequence[Curve]], game: str, points: int = 400) -> Figure:
    """Scores of groups of runs, such as runs that differ in their seed only, by states played.

    Args:
        groups: by name of the group, `score/episode` of each of its runs; at most eight groups.
        game: title of the game.
        points: number of points of each line.

    Each line is the mean over the runs of a group, and its band reaches from the lowest to the highest run. A line ends
    where the shortest run of its group does.
    """
    figure = new_figure(10, 4.8, f"{game}: scores against {STATES}")
    axes = _over_states(figure.subplots(), f"mean score of {WINDOW_EPISODES}\ntraining episodes [points]")
    for color, (name, runs) in zip(RUN_COLORS, groups.items(), strict=False):
        means = [running_mean(scores) for scores in runs if len(scores.values)]
        if not means:
            continue
        first, last = max(mean.states[0] for mean in means), min(mean.states[-1] for mean in means)
        states = np.linspace(first, max(first, last), points)
        values = np.array([np.interp(states, mean.states, mean.mean) for mean in means])
        axes.fill_between(states, values.min(axis=0), values.max(axis=0), color=color, alpha=0.15, lw=0)
        label = name if len(means) == 1 else f"{name} ({len(means)} runs)"
        axes.plot(states, values.mean(axis=0), color=color, lw=1.8, label=label)
    axes.set_xlim(left=0)
    figure.legend(*axes.get_legend_handles_labels(), frameon=False, fontsize=9, loc="outside lower center", ncols=2)
    return figure


def _same(states: np.ndarray) -> np.ndarray:
    return states


def _minutes_of(minutes: Curve, states: np.ndarray) -> np.ndarray:
    """Minutes of work until `states` were played; NaN for states of a cycle that has not ended."""
    interpolated: np.ndarray = np.interp(states, minutes.states, minutes.values, right=np.nan)
    return interpolated


def _marker(x: np.ndarray) -> str:
    """A marker for a curve of one point, which has no visible line."""
    return "o" if len(x) == 1 else ""


def _over_states(axes: Axes, y: str) -> Axes:
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    return plain(axes, STATES, y)


def _evaluations(axes: Axes, x: np.ndarray, mean: Curve, curves: Mapping[str, Curve], color: str, **style: Any) -> None:
    low, high = curves.get(EVALUATION_MEAN_LOW, mean), curves.get(EVALUATION_MEAN_HIGH, mean)
    reach = np.abs([mean.values - low.values, high.values - mean.values])
    axes.errorbar(x, mean.values, reach, marker="o", ms=4.5, color=color, capsize=3, lw=1.4, **style)
