"""Play: many lanes at once with the current network, epsilon-greedy."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from dqn.environments import Lanes
from dqn.experience import Experience
from dqn.policy import epsilon_greedy
from dqn.schedules import LinearSchedule


def play(
    lanes: Lanes,
    estimate: Callable[[np.ndarray], np.ndarray],
    steps: int,
    piece_steps: int,
    epsilon: LinearSchedule,
    states: int,
    generator: np.random.Generator,
) -> Iterator[Experience]:
    """Play every lane for `steps` steps and hand the experience out in pieces.

    Args:
        lanes: L games, left where the last step leads.
        estimate: states (L, 105, 80, 2) uint8 to Q-values (L, A) float32.
        steps: of each lane.
        piece_steps: steps of a piece; the last one may be shorter.
        epsilon: probability of a random action, by states played.
        states: played by the run before this.
        generator: draws of the policy.

    Yields:
        Consecutive pieces, each with its own bootstrap. The next piece is written over the last: use
        it, or copy it, before going on.
    """
    assert steps >= 1 and piece_steps >= 1
    lane_count = len(lanes.episodes)
    piece = Experience.empty(min(steps, piece_steps), lane_count, len(lanes.action_names))
    q_values = estimate(lanes.states)
    for step in range(steps):
        row = step % piece_steps
        piece.states[row] = lanes.states
        piece.q_values[row] = q_values
        piece.episode[row] = lanes.episodes
        actions = epsilon_greedy(q_values, epsilon.at(states + step * lane_count), generator)
        outcome = lanes.step(actions)
        piece.actions[row] = actions
        piece.rewards[row] = outcome.rewards
        piece.life_lost[row] = outcome.life_lost
        piece.terminated[row] = outcome.terminated
        piece.truncated[row] = outcome.truncated
        q_values = estimate(lanes.states)
        if row + 1 == piece_steps or step + 1 == steps:
            piece.bootstrap_q_values[:] = q_values
            yield piece.up_to(row + 1)
