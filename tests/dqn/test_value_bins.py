from __future__ import annotations

from statistics import NormalDist

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some

from dqn.value_bins import BINS, LIMIT, bin_centers, cross_entropy, expected_values, histograms

WIDTH = 2 * LIMIT / BINS


def test_bins_lie_evenly_between_the_limits_with_one_for_zero() -> None:
    centers = bin_centers()
    assert len(centers) == BINS and centers[BINS // 2] == 0
    torch.testing.assert_close(centers.diff(), torch.full((BINS - 1,), WIDTH))
    assert centers[-1].item() == pytest.approx(LIMIT - WIDTH / 2) and centers[0] == -centers[-1]


@pytest.mark.parametrize("value", [0.0, 1.0, -3.21, 9.9, 10.0])
def test_a_histogram_has_the_shares_of_a_normal_distribution_that_ends_at_the_limits(value: float) -> None:
    about = NormalDist(value, 0.75 * WIDTH)
    inside = about.cdf(LIMIT) - about.cdf(-LIMIT)
    expected = [
        (about.cdf(center + WIDTH / 2) - about.cdf(center - WIDTH / 2)) / inside for center in bin_centers().tolist()
    ]
    torch.testing.assert_close(histograms(torch.tensor([value]))[0], torch.tensor(expected), atol=2e-6, rtol=1e-4)


@given(some.floats(-9, 9, width=32))
def test_the_mean_of_a_histogram_is_its_value(value: float) -> None:
    shares = histograms(torch.tensor([value]))
    assert expected_values(shares.log()[:, None]).item() == pytest.approx(value, abs=1e-3)


@pytest.mark.parametrize("beyond", [10.5, 1e6, -11.0, -1e6])
def test_values_beyond_the_limits_count_as_those(beyond: float) -> None:
    at_limit = torch.tensor([LIMIT if beyond > 0 else -LIMIT])
    assert torch.equal(histograms(torch.tensor([beyond])), histograms(at_limit))


def test_no_logits_have_less_cross_entropy_than_those_of_the_histogram() -> None:
    values = torch.tensor([0.3, -2.0, 7.7])
    best = histograms(values).clamp_min(1e-30).log()
    least = cross_entropy(best, values)
    draws = torch.Generator().manual_seed(0)
    for _ in range(20):
        assert cross_entropy(best + 0.3 * torch.randn(best.shape, generator=draws), values) > least
