"""Train the network on one cycle's targets and commit the checkpoint."""

from __future__ import annotations

from dataclasses import replace
from time import perf_counter

from prefect import task
from prefect.cache_policies import NO_CACHE

import dqn.optimization
from dqn.checkpoint import Checkpoint, Counters, learner_tensors
from dqn.episodes import follow
from dqn.experience import Experience
from dqn.optimization import Learner, OptimizationResult
from dqn.replay import ReplayMemory
from dqn.statistics import optimization_metrics, score_metrics
from storage.checkpoints import write_checkpoint
from storage.runs import open_run
from tasks.live import keep_learner, take_experience, take_learner, unit_at_hand
from tasks.progress import report
from tasks.reference import UnitReference, made_by, reference

KIND = "checkpoint"


@task(name="optimize", task_run_name="optimize-{cycle:05d}", cache_policy=NO_CACHE)
def optimize(run_id: str, cycle: int) -> UnitReference:
    """Train towards the targets of cycle `cycle`, and commit the checkpoint after it with the metrics of the cycle."""
    run = open_run(run_id)
    played, swept = (unit_at_hand(run, kind, cycle) for kind in ("experience", "targets"))
    inputs = {**played.inputs, "experience": played.digest, "targets": swept.digest}
    if unit := run.made(KIND, cycle, inputs):
        run.publish(unit)
        return reference(unit)
    start = unit_at_hand(run, "checkpoint", cycle - 1)
    checkpoint, learner = take_learner(run, start)
    experience, targets = take_experience(played, swept)
    memory = ReplayMemory.of(experience, targets)
    with run.commit(KIND, cycle, inputs, made_by()) as draft:
        began = perf_counter()
        result = dqn.optimization.optimize(
            learner,
            memory,
            cycle,
            checkpoint.config.scheduled(checkpoint.facts.counters.states),
            lambda done, batches: report("optimize", cycle, done, batches),
        )
        draft.speed |= {**played.speed, **swept.speed}
        draft.speed["optimize"] = result.states_trained / (perf_counter() - began)
        after = next_checkpoint(checkpoint, learner, experience, result)
        draft.metrics += [*played.metrics, *swept.metrics, *optimization_metrics(result, after.facts.counters)]
        write_checkpoint(draft.directory, after)
    keep_learner(draft.unit, after, learner)
    run.publish(draft.unit)
    run.prune(cycle, checkpoint.config.keep_cycles)
    return reference(draft.unit)


def next_checkpoint(
    before: Checkpoint, learner: Learner, experience: Experience, result: OptimizationResult
) -> Checkpoint:
    """The checkpoint one cycle after `before`."""
    counters = before.facts.counters
    histories, finished = follow(before.histories, experience, counters.states)
    _, recent_scores = score_metrics(before.facts.recent_scores, finished)
    counters = Counters(
        cycle=counters.cycle + 1,
        states=counters.states + experience.states_played,
        episodes=counters.episodes + len(finished),
        updates=counters.updates + len(result.losses),
    )
    facts = replace(before.facts, counters=counters, recent_scores=recent_scores)
    return Checkpoint(facts, histories, *learner_tensors(learner))
