"""Figures of play: scores, highlights, the sweep, and distributions of Q-values and estimation errors.

All functions return a new matplotlib Figure and do not use pyplot.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from dqn.envs.experience import Experience, Targets
from dqn.envs.games import game_title
from dqn.envs.observations import motion
from dqn.evaluation.evaluation import Evaluation
from dqn.plots.highlights import Highlight

BLUE, ORANGE, GREEN, RED, GRAY, LIGHT = "#1f6feb", "#e8702a", "#2a9d58", "#d1343d", "#6b7280", "#d5d9e0"
INK = "#1f2430"
_PITCH = 1.08  # from one column of a strip to the next, relative to the width of an image


def new_figure(width: float, height: float, title: str = "") -> Figure:
    """An empty figure in the style of the project; `width` and `height` in inches."""
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained", facecolor="white")
    if title:
        figure.suptitle(title, fontsize=13, fontweight="bold", color=INK)
    return figure


def plain(axes: Axes, x: str = "", y: str = "") -> Axes:
    """Label the axes with `x` and `y`, and hide the top and right spines."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GRAY)
    axes.tick_params(colors=INK, labelsize=9)
    axes.set_xlabel(x, fontsize=10, color=INK)
    axes.set_ylabel(y, fontsize=10, color=INK)
    return axes


def bare(axes: Axes) -> Axes:
    """Hide ticks and spines, for axes with an image."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    return axes


def score_histogram(evaluation: Evaluation) -> Figure:
    """Histogram of the scores of an evaluation, with their mean, its 95 % interval, and their median."""
    protocol, summary, scores = evaluation.protocol, evaluation.summary(), np.array(evaluation.scores)
    title = f"{game_title(protocol.game)}: {protocol.episodes} complete episodes at epsilon {protocol.epsilon:g}"
    figure = new_figure(8, 4.2, title)
    axes = plain(figure.subplots(), "score of an episode [points]", "episodes")
    counts, _, _ = axes.hist(scores, bins=_bins(scores), color=BLUE, alpha=0.75, edgecolor="white")
    mean, low, high = summary["mean"], summary["mean_low"], summary["mean_high"]
    # Draw the mean above the bars, so that it does not overlap them.
    label = f"mean {mean:.2f}, 95 % interval {low:.2f} to {high:.2f}"
    reach = [[mean - low], [high - mean]]
    axes.errorbar([mean], [1.08 * np.max(counts)], xerr=reach, fmt="o", color=ORANGE, lw=2.4, capsize=5, label=label)
    axes.axvline(summary["median"], color=INK, lw=1.2, ls="--", label=f"median {summary['median']:g}")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(*axes.get_legend_handles_labels(), frameon=False, fontsize=9, loc="outside lower center", ncols=3)
    return figure


def _bins(scores: np.ndarray) -> Any:
    """Edges of at most 30 bins, whose width is a whole number of points."""
    low, high = float(scores.min()), float(scores.max())
    width = max(1.0, np.ceil((high - low + 1) / 30))
    return np.arange(low - 0.5, high + width + 0.5, width)


def highlight_strip(experience: Experience, action_names: Sequence[str], highlight: Highlight, game: str) -> Figure:
    """Frame, motion and Q-values of all states of a highlight; the action taken is orange.

    Each of the three rows is drawn in the same axes for all states, because axes of their own would take several times
    as long.
    """
    steps, lane = highlight.steps, highlight.lane
    q_values = experience.q_values[steps.start : steps.stop, lane]
    columns = max(4.6, len(steps))  # fewer would leave no space for the title
    bars_height = 0.17 * len(action_names)
    title = f"{game_title(game)}: {highlight.name} (step {highlight.step} of lane {lane})"
    figure = new_figure(1.28 * columns + 1.2, 4.4 + bars_height, title)
    frames, traces, bars = figure.subplots(3, 1, height_ratios=[1.7, 1.7, 0.2 + bars_height])
    states = [experience.states[step, lane] for step in steps]
    marked = highlight.step - steps.start
    _draw_row(frames, [state[..., 0] for state in states], marked, cmap="gray")
    _draw_row(traces, [motion(state) for state in states], marked, cmap="magma")
    _q_value_bars(bars, q_values, experience.actions[steps.start : steps.stop, lane])
    centers = [column * _PITCH + 0.5 for column in range(len(steps))]
    margin = (columns * _PITCH - len(steps) * _PITCH + _PITCH - 1) / 2
    for axes in (frames, traces, bars):
        axes.set_xlim(-margin, centers[-1] + 0.5 + margin)
        axes.tick_params(length=0)
    frames.xaxis.tick_top()
    offsets = [step - highlight.step for step in steps]
    frames.set_xticks(centers, [f"t {offset:+d}" if offset else "t" for offset in offsets], fontsize=10, color=INK)
    frames.get_xticklabels()[marked].set(color=ORANGE, fontweight="bold")
    events = [_events(experience, step, lane) for step in steps]
    bars.set_xticks(centers, events, fontsize=10, fontweight="bold")
    for label, event in zip(bars.get_xticklabels(), events, strict=True):
        label.set_color(GREEN if event.startswith("+") else RED)
    frames.set_ylabel("frame", fontsize=9)
    traces.set_ylabel("motion", fontsize=9)
    bars.set_yticks(range(len(action_names)), action_names, fontsize=8)
    bars.set_ylabel("Q-value", fontsize=9)
    return figure


def _draw_row(axes: Axes, images: Sequence[np.ndarray], marked: int, cmap: str) -> None:
    """Draw images (height, width) of width 1 side by side; the one with the number `marked` gets an orange border."""
    bare(axes)
    height, width = images[0].shape
    for column, image in enumerate(images):
        left = column * _PITCH
        axes.imshow(image, cmap=cmap, vmin=0, vmax=255, extent=(left, left + 1, height / width, 0))
    axes.add_patch(Rectangle((marked * _PITCH, 0), 1, height / width, fill=False, color=ORANGE, lw=2, clip_on=False))
    axes.set_ylim(height / width, 0)


def _q_value_bars(axes: Axes, q_values: np.ndarray, taken: np.ndarray) -> None:
    """Horizontal bars for the Q-values (T, A) of each state; all start at the same value below the lowest Q-value.

    They do not start at zero, because only their differences matter.
    """
    low, high = float(q_values.min()), float(q_values.max())
    margin = 0.08 * (high - low) or 0.1
    lengths = (q_values - low + margin) / (high - low + 2 * margin)
    names = range(q_values.shape[1])
    inside: Any = {"in_layout": False}  # of the axes, so that the layout need not measure them
    bare(axes)
    for column, values in enumerate(q_values):
        left, best = column * _PITCH, int(values.argmax())
        colors = [ORANGE if action == taken[column] else LIGHT for action in names]
        axes.barh(names, lengths[column], left=left, color=colors, height=0.8, **inside)
        for action in names:
            weight = "bold" if action == best else "normal"
            text = f" {values[action]:.3f}"
            axes.text(left, action, text, va="center", fontsize=7, fontweight=weight, color=INK, **inside)
    axes.invert_yaxis()


def _events(experience: Experience, step: int, lane: int) -> str:
    """The reward of a step, and whether it ended a life or the episode, as a label."""
    if experience.truncated[step, lane]:
        return "cut off"
    parts = [f"{experience.rewards[step, lane]:+g}"] if experience.rewards[step, lane] else []
    if experience.terminated[step, lane]:
        parts.append("game over")
    elif experience.life_lost[step, lane]:
        parts.append("life lost")
    return ", ".join(parts)


def sweep_figure(experience: Experience, targets: Targets, highlight: Highlight, game: str, discount: float) -> Figure:
    """Q-value of the action taken before and after the sweep, along a highlight that leads to a reward."""
    rows, lane = slice(highlight.steps.start, highlight.steps.stop), highlight.lane
    taken = experience.actions[rows, lane, None].astype(np.int64)
    before = np.take_along_axis(experience.q_values[rows, lane], taken, 1)[:, 0]
    after = np.take_along_axis(targets.q_values[rows, lane], taken, 1)[:, 0]
    offsets = np.array(highlight.steps) - highlight.step
    figure = new_figure(10, 5.6, f"{game_title(game)}: the backward sweep along {highlight.name}")
    shown = _spaced(highlight, 8)
    grid = figure.add_gridspec(2, len(shown), height_ratios=[3.0, 1.5])
    axes = plain(
        figure.add_subplot(grid[0, :]), "steps before and after the point", "Q-value of the action taken [reward]"
    )
    axes.fill_between(offsets, before, after, color=BLUE, alpha=0.12, lw=0)
    axes.plot(offsets, before, "o-", color=GRAY, ms=3, lw=1.2, label="the network's estimate when it played")
    axes.plot(offsets, after, "o-", color=BLUE, ms=3, lw=1.8, label=f"after the sweep (discount {discount:g})")
    _mark_rewards(axes, offsets, experience.rewards[rows, lane])
    ended = experience.life_lost[rows, lane] | experience.terminated[rows, lane]
    for offset in offsets[ended]:
        axes.axvline(offset, color=RED, lw=1.2, ls=":", label="life lost")
    axes.legend(frameon=False, fontsize=9, loc="upper left")
    axes.margins(y=0.15)
    for column, step in enumerate(shown):
        picture = bare(figure.add_subplot(grid[1, column]))
        picture.imshow(experience.states[step, lane].max(axis=-1), cmap="gray", vmin=0, vmax=255)
        picture.set_title(f"{step - highlight.step:+d}" if step != highlight.step else "0", fontsize=9)
        if column == 0:
            picture.set_ylabel("frame and trace", fontsize=9)
    return figure


def _mark_rewards(axes: Axes, offsets: np.ndarray, rewards: np.ndarray) -> None:
    """Mark the offsets with a reward by a labeled vertical line."""
    for offset, reward in zip(offsets[rewards != 0], rewards[rewards != 0], strict=True):
        axes.axvline(offset, color=GREEN, lw=1.2, ls=":")
        axes.annotate(
            f"reward {reward:+g}",
            (offset, 1),
            xycoords=("data", "axes fraction"),
            xytext=(-4, -4),
            textcoords="offset points",
            ha="right",
            va="top",
            fontsize=9,
            color=GREEN,
        )


def _spaced(highlight: Highlight, most: int) -> list[int]:
    """At most `most` evenly spaced steps of a highlight, its own step among them."""
    steps = highlight.steps
    shown = np.linspace(steps.start, steps.stop - 1, min(most, len(steps))).round().astype(int)
    shown[np.abs(shown - highlight.step).argmin()] = highlight.step
    return [int(step) for step in shown]


def q_value_histogram(experience: Experience, targets: Targets, game: str) -> Figure:
    """Histogram of the Q-values of the actions taken, before and after the sweep."""
    taken = experience.actions[..., None].astype(np.int64)
    played = ~experience.truncated
    before = np.take_along_axis(experience.q_values, taken, 2)[..., 0][played]
    after = np.take_along_axis(targets.q_values, taken, 2)[..., 0][played]
    figure = new_figure(8, 4, f"{game_title(game)}: Q-values of the actions taken, {len(before):,} states")
    axes = plain(figure.subplots(), "Q-value [reward]", "states")
    bins = np.linspace(min(before.min(), after.min()), max(before.max(), after.max(), before.min() + 1e-6), 61)
    axes.hist(before, list(bins), color=GRAY, alpha=0.45, label=f"estimated when played, mean {before.mean():.3f}")
    axes.hist(after, list(bins), histtype="step", color=BLUE, lw=1.8, label=f"after the sweep, mean {after.mean():.3f}")
    axes.legend(frameon=False, fontsize=9)
    return figure


def error_histogram(targets: Targets, game: str, threshold: float) -> Figure:
    """Histogram of the estimation errors, on a logarithmic scale that shows the rare large ones."""
    errors = targets.estimation_errors.ravel()
    share = float((errors >= threshold).mean())
    figure = new_figure(8, 4, f"{game_title(game)}: estimation errors, {len(errors):,} states")
    axes = plain(figure.subplots(), "estimation error |after - before| [reward]", "states (log scale)")
    axes.hist(errors, list(np.linspace(0, max(float(errors.max()), 1e-6), 61)), color=BLUE, alpha=0.8)
    axes.set_yscale("log")
    axes.axvline(
        threshold, color=ORANGE, lw=1.6, ls="--", label=f"threshold {threshold:g}: {100 * share:.1f} % are high"
    )
    axes.legend(frameon=False, fontsize=9)
    return figure
