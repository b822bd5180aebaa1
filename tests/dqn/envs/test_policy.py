from __future__ import annotations

import numpy as np
import pytest

from dqn.envs.policy import epsilon_greedy


def test_epsilon_0_selects_first_best_action() -> None:
    q_values = np.array([[0, 3, 1], [-1, -2, -3], [5, 5, 5], [0, 2, 2]], np.float32)
    assert epsilon_greedy(q_values, 0, np.random.default_rng(0)).tolist() == [1, 0, 0, 1]


def test_epsilon_1_selects_actions_uniformly() -> None:
    q_values = np.tile(np.array([[9, 0, 0, 0]], np.float32), (20_000, 1))
    counts = np.bincount(epsilon_greedy(q_values, 1, np.random.default_rng(0)), minlength=4)
    assert counts.shape == (4,)
    np.testing.assert_allclose(counts / 20_000, 0.25, atol=0.02)


@pytest.mark.parametrize("epsilon", [0.01, 0.1, 0.3, 0.9])
def test_epsilon_is_share_of_random_actions(epsilon: float) -> None:
    q_values = np.tile(np.array([[0, 9, 0, 0]], np.float32), (50_000, 1))
    others = epsilon_greedy(q_values, epsilon, np.random.default_rng(0)) != 1
    assert others.mean() == pytest.approx(epsilon * 3 / 4, abs=0.01)


def test_lanes_explore_independently() -> None:
    q_values = np.tile(np.array([[0, 9]], np.float32), (100, 1))
    actions = epsilon_greedy(q_values, 0.5, np.random.default_rng(0))
    assert set(actions.tolist()) == {0, 1}


@pytest.mark.parametrize("epsilon", [0, 0.5, 1])
@pytest.mark.parametrize("best", [0, 2])
def test_number_of_draws_is_constant(epsilon: float, best: int) -> None:
    def next_draw(epsilon: float, best: int) -> float:
        draws = np.random.default_rng(3)
        epsilon_greedy(np.eye(3, dtype=np.float32)[[best] * 7], epsilon, draws)
        return draws.random()

    assert next_draw(epsilon, best) == next_draw(0.2, 1)


def test_actions_are_one_index_for_each_lane() -> None:
    actions = epsilon_greedy(np.zeros((5, 18), np.float32), 1, np.random.default_rng(0))
    assert actions.shape == (5,) and actions.dtype == np.int64
    assert ((actions >= 0) & (actions < 18)).all()
