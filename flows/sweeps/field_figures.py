"""Figures of the fields of a sweep: what was tried, and what it changed."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from statistics import fmean

import matplotlib.pyplot as plt
import optuna
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial

from dqn.plots.figures import BLUE, GRAY, new_figure, plain
from flows.sweeps.results import short

MOST_COLUMNS = 4


def objective_by_field(tried: optuna.Study, names: Sequence[str], objective: str) -> Figure:
    """The objective of every trial against each field, with the means of the values of a field that has choices.

    Args:
        tried: a study of complete trials.
        names: of the fields.
        objective: name of the objective, for the axis.
    """
    columns = min(MOST_COLUMNS, len(names))
    rows = -(-len(names) // columns)
    figure = new_figure(1.5 + 2.5 * columns, 0.6 + 2.6 * rows, "Objective by field")
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).flat
    for number, axes in enumerate(panels):
        if number < len(names):
            plain(axes, names[number], objective if number % columns == 0 else "")
            _draw_field(axes, tried.trials, names[number])
        else:
            axes.remove()
    return figure


def _draw_field(axes: Axes, trials: Sequence[FrozenTrial], name: str) -> None:
    values, objectives = [trial.params[name] for trial in trials], [trial.value or 0.0 for trial in trials]
    distribution = trials[0].distributions[name]
    if isinstance(distribution, CategoricalDistribution):
        choices = [choice for choice in distribution.choices if choice in values]
        places = [choices.index(value) for value in values]
        means = [
            fmean(o for o, p in zip(objectives, places, strict=True) if p == place) for place in range(len(choices))
        ]
        axes.hlines(means, [p - 0.25 for p in range(len(choices))], [p + 0.25 for p in range(len(choices))], GRAY, lw=2)
        axes.plot(places, objectives, "o", color=BLUE, ms=5)
        axes.set_xticks(range(len(choices)), [short(choice) for choice in choices])
        axes.set_xlim(-0.5, len(choices) - 0.5)
        return
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    axes.plot(values, objectives, "o", color=BLUE, ms=5)
    if distribution.log:
        axes.set_xscale("log")


def importance_figure(tried: optuna.Study, names: Sequence[str]) -> Figure:
    """The share of the variance of the objective that each field explains.

    Source: Hutter and others 2014, An Efficient Approach for Assessing Hyperparameter Importance.

    Args:
        tried: a study of complete trials.
        names: of the fields.
    """
    found = get_param_importances(tried, evaluator=FanovaImportanceEvaluator(seed=0), params=list(names))
    figure = new_figure(8, 1.2 + 0.4 * len(found), "Importance of the fields")
    axes = plain(figure.subplots(), "share")
    axes.barh(list(found)[::-1], list(found.values())[::-1], color=BLUE)
    axes.set_xlim(0, 1)
    return figure


def parallel_coordinates(tried: optuna.Study, names: Sequence[str], objective: str) -> Figure:
    """A line for each trial across an axis for each field; see `objective_by_field` for the arguments."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna marks the function as experimental
        axes = optuna.visualization.matplotlib.plot_parallel_coordinate(tried, list(names), target_name=objective)
    figure = axes.figure
    assert isinstance(figure, Figure)
    plt.close(figure)
    figure.set_size_inches(10, 4.5)
    figure.set_dpi(120)
    figure.subplots_adjust(left=0.08, bottom=0.25)  # for the names of the fields, which Optuna writes aslant
    axes.set_title("")
    return figure
