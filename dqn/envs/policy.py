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
    """Epsilon-greedy policy of one cycle, with a random generator for each group of lanes."""

    epsilon: LinearSchedule  # probability of a random action, as a function of the states played by the run
    states: int  # states that the run has played before the cycle
    total_lanes: int  # lanes of the run, which is the number of states that one step of the run plays
    generators: Sequence[np.random.Generator]  # one for each group

    @classmethod
    def of(cls, config: TrainConfig, cycle: int, states: int, shard: int = 0) -> CyclePolicy:
        """The policy of a shard in `cycle`, before which the run has played `states` states."""
        draws = [generator(config.seed, "policy", cycle, group) for group in config.group_numbers(shard)]
        return cls(config.epsilon, states, config.lanes, draws)

    def actions(self, q_values: np.ndarray, step: int, group: int) -> np.ndarray:
        """Select actions (L,) int64 for the lanes of a group in step `step` of the cycle, from `q_values` (L, A)."""
        epsilon = self.epsilon.at(self.states + step * self.total_lanes)
        return epsilon_greedy(q_values, epsilon, self.generators[group])


def epsilon_greedy(q_values: np.ndarray, epsilon: float, generator: np.random.Generator) -> np.ndarray:
    """Select for each lane the action with the highest Q-value, or with probability `epsilon` a random action.

    Args:
        q_values: (L, A) float32; the first of equal values counts as the highest.
        epsilon: from 0 to 1.
        generator: of the random draws, whose number depends only on the shape of `q_values`.

    Returns:
        actions (L,) int64.
    """
    assert q_values.ndim == 2 and 0 <= epsilon <= 1
    lanes, actions = q_values.shape
    explore = generator.random(lanes) < epsilon
    random_actions = generator.integers(actions, size=lanes)
    return np.where(explore, random_actions, q_values.argmax(axis=1))
