"""One training cycle."""

from __future__ import annotations

from dataclasses import replace

from dqn.checkpoint import Checkpoint, Counters
from dqn.envs.experience import Experience
from dqn.envs.histories import advance, midgame_starts
from dqn.learning.learner import Learner
from dqn.learning.optimization import OptimizationResult
from dqn.metrics import score_metrics


def next_checkpoint(
    before: Checkpoint, learner: Learner, experience: Experience, result: OptimizationResult
) -> Checkpoint:
    """The checkpoint one cycle after `before`."""
    counters = before.metadata.counters
    histories, finished = advance(before.histories, experience, counters.states)
    histories = midgame_starts(histories, before.config, counters.cycle + 1)
    _, recent_scores = score_metrics(before.metadata.recent_scores, finished)
    counters = Counters(
        cycle=counters.cycle + 1,
        states=counters.states + experience.states_played,
        episodes=counters.episodes + len(finished),
        updates=counters.updates + len(result.losses),
    )
    metadata = replace(before.metadata, counters=counters, recent_scores=recent_scores)
    return Checkpoint(metadata, histories, *learner.state_dict())
