"""The data of one cycle: what the lanes played, and the Q-values that the sweep computes from it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dqn.envs.observations import STATE_HEIGHT, STATE_WIDTH


@dataclass(frozen=True)
class Experience:
    """`T` consecutive steps of `L` lanes with `A` actions and `C` channels of a state; the first axis is the step.

    A row is one step of one lane. A truncated row marks a time limit: its state is the last one of the
    episode, its action was not played, and its reward is 0. The sweep bootstraps from its Q-values.
    """

    states: np.ndarray  # (T, L, 105, 80, C) uint8: before the action; gray frame and motion trace, or stacked frames
    q_values: np.ndarray  # (T, L, A) float32: the network's estimates for `states` during play
    bootstrap_q_values: np.ndarray  # (L, A) float32: the network's estimates for the states after the last step
    actions: np.ndarray  # (T, L) uint8: actions taken
    rewards: np.ndarray  # (T, L) float32: rewards of the actions, not clipped
    life_lost: np.ndarray  # (T, L) bool: the step lost a life
    terminated: np.ndarray  # (T, L) bool: the step ended the episode
    truncated: np.ndarray  # (T, L) bool: the time limit ended the episode before the action
    episode: np.ndarray  # (T, L) int64: number of the episode in the run

    @classmethod
    def empty(cls, steps: int, lanes: int, actions: int, *, channels: int = 2, with_states: bool = True) -> Experience:
        """Arrays of the given size, to be filled in place; `states` has no rows unless `with_states`."""
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
        """Number of steps of each lane, T."""
        return len(self.actions)

    @property
    def states_played(self) -> int:
        """Number of states of all lanes, T · L."""
        return self.actions.size


@dataclass(frozen=True)
class Targets:
    """Regression targets of the network, computed by the sweep."""

    q_values: np.ndarray  # (T, L, A) float32: the estimates, with the value of the action taken replaced
    estimation_errors: np.ndarray  # (T, L) float32: absolute difference between that value and its estimate
