from __future__ import annotations

import numpy as np

from dqn.evaluation.evaluation import interquartile_mean


def test_interquartile_mean_averages_the_middle_half() -> None:
    assert interquartile_mean([np.array([-90.0, 3, 1, 2, 4, 5, 6, 900])])[0] == np.mean([2, 3, 4, 5])


def test_interquartile_mean_weighs_every_seed_equally() -> None:
    """The numbers of episodes differ between the seeds."""
    few, many = np.array([9.0, 10]), np.array([1.0, 2, 3, 4, 5, 6])
    pool = [1, 2, 3, 4, 5, 6, 9, 9, 9, 10, 10, 10]  # each of the two episodes three times
    assert interquartile_mean([few, many])[0] == np.mean(pool[3:9])


def test_interquartile_mean_interval_is_stratified_by_seed() -> None:
    apart = [np.full(20, 1.0), np.full(20, 100.0)]
    assert interquartile_mean(apart) == (50.5, 50.5, 50.5)  # samples from one pool would give a wide interval
