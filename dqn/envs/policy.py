"""The epsilon-greedy policy."""

from __future__ import annotations

import numpy as np


def epsilon_greedy(q_values: np.ndarray, epsilon: float, generator: np.random.Generator) -> np.ndarray:
    """Each lane's best action, or with probability `epsilon` any action at all.

    Args:
        q_values: (L, A) float32.
        epsilon: from 0 to 1.
        generator: draws the same number of values whatever they turn out to be.

    Returns:
        actions (L,) int64.
    """
    assert q_values.ndim == 2 and 0 <= epsilon <= 1
    lanes, actions = q_values.shape
    explore = generator.random(lanes) < epsilon
    anything = generator.integers(actions, size=lanes)
    return np.where(explore, anything, q_values.argmax(axis=1))
