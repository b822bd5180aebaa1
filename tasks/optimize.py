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
from dqn.replay import ReplayMemory, reestimated
from dqn.statistics import optimization_metrics, score_metrics
from dqn.sweep import SweepRule, backward_sweep
from storage.checkpoints import write_checkpoint
from storage.errors import StorageError
from storage.experience import read_experience, read_experiences
from storage.runs import StoredRun, open_run
from storage.units import Unit, cycle_name
from tasks.live import keep_learner, let_go_of_experience, take_experience, take_learner, unit_at_hand
from tasks.progress import report
from tasks.reference import UnitReference, made_by, reference

KIND = "checkpoint"


@task(name="optimize", task_run_name="optimize-{cycle:05d}", cache_policy=NO_CACHE)
def optimize(run_id: str, cycle: int) -> UnitReference:
    """Train towards the targets of cycle `cycle`, and commit the checkpoint after it with the metrics of the cycle."""
    run = open_run(run_id)
    played, swept = (unit_at_hand(run, kind, cycle) for kind in ("experience", "targets"))
    older = older_cycles(run, cycle)
    inputs = {**played.inputs, "experience": played.digest, "targets": swept.digest}
    inputs |= {f"experience-{cycle_name(unit.cycle)}": unit.digest for unit in older}
    if unit := run.made(KIND, cycle, inputs):
        run.publish(unit)
        return reference(unit)
    start = unit_at_hand(run, "checkpoint", cycle - 1)
    checkpoint, learner = take_learner(run, start)
    if older:
        experience, memory = replay_of([*older, played], learner)
    else:
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
    run.prune(cycle, checkpoint.config.keep_cycles, checkpoint.config.replay_cycles)
    return reference(draft.unit)


def older_cycles(run: StoredRun, cycle: int) -> list[Unit]:
    """The experience that the replay memory holds beside that of `cycle`, oldest first.

    Raises:
        StorageError: some of it is gone or corrupt.
    """
    replayed = run.config.replay_cycles
    try:
        return [run.unit("experience", old) for old in range(max(1, cycle - replayed + 1), cycle)]
    except StorageError as error:
        raise StorageError(
            f"{error}; with replay_cycles={replayed} cycle {cycle} cannot be optimized without it: start a new run"
        ) from None


def replay_of(cycles: list[Unit], learner: Learner) -> tuple[Experience, ReplayMemory]:
    """The last cycle's experience, without its states, and the replay memory of all `cycles`.

    `learner` played the last one; the estimates of the others are made anew, and all are swept as one.
    Every state is in memory once, so what is still held of the last cycle is let go.
    """
    let_go_of_experience()
    played = read_experience(cycles[-1].directory, with_states=False)
    experience = read_experiences([unit.directory for unit in cycles])
    experience = reestimated(experience, experience.steps - played.steps, learner.estimate)
    return played, ReplayMemory.of(experience, backward_sweep(experience, SweepRule.of(learner.config)))


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
