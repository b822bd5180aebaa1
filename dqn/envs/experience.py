"""What a cycle of play leaves behind, and what the sweep makes of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dqn.envs.observations import STATE_HEIGHT, STATE_WIDTH


@dataclass(frozen=True)
class Experience:
    """`T` consecutive steps of `L` lanes with `A` actions, steps first.

    A truncated row is where a time limit cut the episode off: its state is the last one of the
    episode, its action was not played and it earned nothing. It stands there to be bootstrapped from.
    """

    states: np.ndarray  # (T, L, 105, 80, C) uint8: before the action; gray frame and motion trace, or stacked frames
    q_values: np.ndarray  # (T, L, A) float32: the network's estimates when the state was seen
    bootstrap_q_values: np.ndarray  # (L, A) float32: its estimates for the states after the last step
    actions: np.ndarray  # (T, L) uint8: actions taken
    rewards: np.ndarray  # (T, L) float32: earned by them, not clipped
    life_lost: np.ndarray  # (T, L) bool: a life was lost with this step
    terminated: np.ndarray  # (T, L) bool: the episode ended with this step
    truncated: np.ndarray  # (T, L) bool: the episode was cut off at this state
    episode: np.ndarray  # (T, L) int64: which episode of the run

    @classmethod
    def empty(cls, steps: int, lanes: int, actions: int, *, channels: int = 2, with_states: bool = True) -> Experience:
        """Experience of that size, to be filled; without states, `states` has no rows."""
        table = (steps, lanes)
        return cls(
            states=np.empty((steps if with_states else 0, lanes, STATE_HEIGHT, STATE_WIDTH, channels), np.uint8),
            q_values=np.zeros((*table, actions), np.float32),
            bootstrap_q_values=np.zeros((lanes, actions), np.float32),
            actions=np.zeros(table, np.uint8),
            rewards=np.zeros(table, np.float32),
            life_lost=np.zeros(table, bool),
            terminated=np.zeros(table, bool),
            truncated=np.zeros(table, bool),
            episode=np.zeros(table, np.int64),
        )

    @property
    def steps(self) -> int:
        """Steps of each lane, T."""
        return len(self.actions)

    @property
    def states_played(self) -> int:
        """States in all lanes together, T · L."""
        return self.actions.size


@dataclass(frozen=True)
class Targets:
    """What the network should have estimated, by the sweep."""

    q_values: np.ndarray  # (T, L, A) float32: the estimates with the taken action's value replaced
    estimation_errors: np.ndarray  # (T, L) float32: how far that moved it
