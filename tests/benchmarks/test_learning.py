from __future__ import annotations

import numpy as np

from benchmarks.learning import interquartile_mean


def test_interquartile_mean_is_that_of_the_middle_half() -> None:
    assert interquartile_mean([np.array([-90.0, 3, 1, 2, 4, 5, 6, 900])])[0] == np.mean([2, 3, 4, 5])


def test_every_seed_weighs_the_same_however_many_its_episodes() -> None:
    few, many = np.array([9.0, 10]), np.array([1.0, 2, 3, 4, 5, 6])
    as_one = [1, 2, 3, 4, 5, 6, 9, 9, 9, 10, 10, 10]  # each of the two three times
    assert interquartile_mean([few, many])[0] == np.mean(as_one[3:9])


def test_the_interval_is_of_draws_within_each_seed() -> None:
    apart = [np.full(20, 1.0), np.full(20, 100.0)]
    assert interquartile_mean(apart) == (50.5, 50.5, 50.5)  # drawn from one pool it would be wide
