"""One training cycle."""

from __future__ import annotations

from dataclasses import replace

from dqn.checkpoint import Checkpoint, Counters
from dqn.envs.experience import Experience
from dqn.envs.histories import follow, midgame_starts
from dqn.learning.learner import Learner, learner_tensors
from dqn.learning.optimization import OptimizationResult
from dqn.metrics import score_metrics


def next_checkpoint(
    before: Checkpoint, learner: Learner, experience: Experience, result: OptimizationResult
) -> Checkpoint:
    """The checkpoint one cycle after `before`."""
    counters = before.facts.counters
    histories, finished = follow(before.histories, experience, counters.states)
    histories = midgame_starts(histories, before.config, counters.cycle + 1)
    _, recent_scores = score_metrics(before.facts.recent_scores, finished)
    counters = Counters(
        cycle=counters.cycle + 1,
        states=counters.states + experience.states_played,
        episodes=counters.episodes + len(finished),
        updates=counters.updates + len(result.losses),
    )
    facts = replace(before.facts, counters=counters, recent_scores=recent_scores)
    return Checkpoint(facts, histories, *learner_tensors(learner))
