"""The epsilon-greedy policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dqn.config import TrainConfig
from dqn.randomness import generator
from dqn.schedules import LinearSchedule


@dataclass(frozen=True)
class CyclePolicy:
    """Epsilon-greedy policy of one cycle, with one random generator for each group of lanes."""

    epsilon: LinearSchedule  # probability of a random action, by states played
    states: int  # played by the run before the cycle
    total_lanes: int  # of the run: the states that one step of all its lanes plays
    generators: Sequence[np.random.Generator]  # one for each group

    @classmethod
    def of(cls, config: TrainConfig, cycle: int, states: int, shard: int = 0) -> CyclePolicy:
        """The policy of a shard's groups in `cycle`, which starts after `states` states of the run."""
        draws = [generator(config.seed, "policy", cycle, group) for group in config.group_numbers(shard)]
        return cls(config.epsilon, states, config.lanes, draws)

    def actions(self, q_values: np.ndarray, step: int, group: int) -> np.ndarray:
        """Actions (L,) int64 of a group's lanes in `step` of the cycle, from their Q-values (L, A)."""
        epsilon = self.epsilon.at(self.states + step * self.total_lanes)
        return epsilon_greedy(q_values, epsilon, self.generators[group])


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
