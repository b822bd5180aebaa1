"""Pictures of play: scores, moments, the sweep, and how Q-values and errors spread.

Every function returns a matplotlib Figure and touches no global state.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dqn.environments import game_title
from dqn.evaluation import Evaluation

BLUE, ORANGE, GREEN, RED, GRAY, LIGHT = "#1f6feb", "#e8702a", "#2a9d58", "#d1343d", "#6b7280", "#d5d9e0"
INK = "#1f2430"


def new_figure(width: float, height: float, title: str = "") -> Figure:
    """An empty figure of that size in inches, in the style of all others."""
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained", facecolor="white")
    if title:
        figure.suptitle(title, fontsize=13, fontweight="bold", color=INK)
    return figure


def plain(axes: Axes, x: str = "", y: str = "") -> Axes:
    """Name the axes and take away what does not inform."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GRAY)
    axes.tick_params(colors=INK, labelsize=9)
    axes.set_xlabel(x, fontsize=10, color=INK)
    axes.set_ylabel(y, fontsize=10, color=INK)
    return axes


def bare(axes: Axes) -> Axes:
    """For images: no ticks."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    return axes


def score_histogram(evaluation: Evaluation) -> Figure:
    """How the scores of an evaluation scatter: every one, their mean and its 95 % interval."""
    protocol, summary, scores = evaluation.protocol, evaluation.summary(), np.array(evaluation.scores)
    title = f"{game_title(protocol.game)}: {protocol.episodes} complete episodes at epsilon {protocol.epsilon:g}"
    figure = new_figure(8, 4.2, title)
    axes = plain(figure.subplots(), "score of an episode [points]", "episodes")
    axes.hist(scores, bins=_bins(scores), color=BLUE, alpha=0.75, edgecolor="white")
    axes.axvspan(summary["mean_low"], summary["mean_high"], color=ORANGE, alpha=0.25, lw=0, label="95 % interval")
    axes.axvline(summary["mean"], color=ORANGE, lw=2, label=f"mean {summary['mean']:.2f}")
    axes.axvline(summary["median"], color=INK, lw=1.2, ls="--", label=f"median {summary['median']:g}")
    lift = (np.arange(len(scores)) % 5) * 0.018
    axes.plot(scores, -0.035 - lift, "|", color=INK, ms=7, transform=axes.get_xaxis_transform(), clip_on=False)
    axes.tick_params(axis="x", pad=16)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, fontsize=9)
    return figure


def _bins(scores: np.ndarray) -> Any:
    """Edges of whole scores' bins, at most 30 of them."""
    low, high = float(scores.min()), float(scores.max())
    width = max(1.0, np.ceil((high - low + 1) / 30))
    return np.arange(low - 0.5, high + width + 0.5, width)
