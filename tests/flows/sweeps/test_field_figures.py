"""Figures of the fields of a sweep."""

from __future__ import annotations

import itertools

import optuna
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import create_trial

from flows.sweeps.field_figures import importance_figure, objective_by_field, parallel_coordinates

GRID: dict[str, BaseDistribution] = {
    "td_lambda": CategoricalDistribution([0.65, 0.8]),
    "batch_size": CategoricalDistribution([64, 128]),
    "seedling": CategoricalDistribution(["a", "b"]),
}


@pytest.fixture
def tried() -> optuna.Study:
    """A grid in which λ matters most, the batch less, and the third field not at all."""
    study = optuna.create_study(direction="maximize")
    for td_lambda, batch, other in itertools.product([0.65, 0.8], [64, 128], ["a", "b"]):
        params = {"td_lambda": td_lambda, "batch_size": batch, "seedling": other}
        value = 20 * td_lambda - batch / 64
        study.add_trial(create_trial(params=params, distributions=GRID, value=value))
    return study


def test_importance_is_that_of_the_differences(tried: optuna.Study) -> None:
    (axes,) = importance_figure(tried, list(GRID)).axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    shares = {label: bar.get_width() for label, bar in zip(labels, axes.patches, strict=True)}
    assert shares["td_lambda"] > shares["batch_size"] > 0.05 > shares["seedling"]
    assert sum(shares.values()) == pytest.approx(1)


def test_every_field_has_its_trials_and_means(tried: optuna.Study) -> None:
    panels = objective_by_field(tried, list(GRID), "score").axes
    assert [axes.get_xlabel() for axes in panels] == list(GRID)
    assert [len(axes.lines[0].get_xdata()) for axes in panels] == [8, 8, 8]
    means = [sorted(segment[0][1] for segment in axes.collections[0].get_segments()) for axes in panels]
    assert means[0] == pytest.approx([11.5, 14.5]) and means[1] == pytest.approx([12.5, 13.5])
    assert [label.get_text() for label in panels[1].get_xticklabels()] == ["64", "128"]


def test_range_is_drawn_on_its_own_scale() -> None:
    study = optuna.create_study(direction="maximize")
    for rate in (1e-4, 1e-3):
        study.add_trial(
            create_trial(
                params={"rate": rate}, distributions={"rate": FloatDistribution(1e-5, 1, log=True)}, value=rate
            )
        )
    (axes,) = objective_by_field(study, ["rate"], "score").axes
    assert axes.get_xscale() == "log" and list(axes.lines[0].get_xdata()) == [1e-4, 1e-3]


@pytest.mark.parametrize("count", [1, 4, 5])
def test_any_number_of_fields_has_its_panels(tried: optuna.Study, count: int) -> None:
    figure = objective_by_field(tried, (list(GRID) * 2)[:count], "score")
    FigureCanvasAgg(figure).draw()
    assert len(figure.axes) == count


def test_parallel_coordinates_have_a_line_for_each_trial(tried: optuna.Study) -> None:
    assert len(parallel_coordinates(tried, list(GRID), "score").axes[0].collections[0].get_segments()) == 8
