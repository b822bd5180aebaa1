"""Train the network on one cycle's targets and commit the checkpoint. Its metrics are published by the flow."""

from __future__ import annotations

from statistics import fmean
from time import perf_counter

from prefect import task
from prefect.cache_policies import NO_CACHE

from dqn.checkpoint import Checkpoint
from dqn.cycle import next_checkpoint
from dqn.envs.experience import Experience
from dqn.envs.histories import advance
from dqn.learning.learner import Learner
from dqn.learning.optimization import train_on
from dqn.learning.replay import ReplayMemory, cut_at_starts, reestimated
from dqn.learning.sweep import SweepRule, backward_sweep
from dqn.metrics import Metric, optimization_metrics, play_metrics, score_metrics, sweep_metrics
from storage.errors import StorageError
from storage.formats.checkpoint import write_checkpoint
from storage.formats.experience import read_all_targets, read_experiences
from storage.runs import StoredRun, open_run
from storage.units.unit import CHECKPOINT, EXPERIENCE, TARGETS, Unit, cycle_name
from tasks.process_cache import (
    keep_learner,
    let_go_of_experience,
    processes_of,
    take_experience,
    take_learner,
    unit_at_hand,
)
from tasks.progress import report
from tasks.unit_reference import UnitReference, made_by, reference


@task(name="optimize", task_run_name="optimize-{cycle:05d}", cache_policy=NO_CACHE)
def optimize(run_id: str, cycle: int) -> UnitReference:
    """Train towards the targets of cycle `cycle`, and commit the checkpoint after it with the metrics of the cycle."""
    run = open_run(run_id)
    # What is at hand of shards is not all that is in their files, which are read below and so must be checked.
    open_unit = unit_at_hand if run.shards == 1 else StoredRun.unit
    played, swept = ([open_unit(run, kind, cycle) for kind in run.kinds(what)] for what in (EXPERIENCE, TARGETS))
    older = older_cycles(run, cycle)
    inputs = {**played[0].inputs, **{str(unit.kind): unit.digest for unit in (*played, *swept)}}
    inputs |= {f"{unit.kind}-{cycle_name(unit.cycle)}": unit.digest for shards in older for unit in shards}
    if unit := run.made(CHECKPOINT, cycle, inputs):
        return reference(unit)
    start = unit_at_hand(run, CHECKPOINT, cycle - 1)
    checkpoint, learner = take_learner(run, start)
    if older:
        experience, memory = replay_of([*older, played], learner)
    else:
        experience, targets = take_experience(played, swept)
        memory = ReplayMemory.of(experience, targets)
    with run.commit(CHECKPOINT, cycle, inputs, made_by()) as draft:
        began = perf_counter()
        processes = checkpoint.config.optimizer_processes
        train = train_on if processes == 1 else processes_of(checkpoint).train_on
        result = train(
            learner,
            memory,
            cycle,
            checkpoint.config.scheduled(checkpoint.metadata.counters.states),
            lambda done, batches: report("optimize", cycle, done, batches),
        )
        for units in (played, swept):  # of one shard, on the average
            draft.speed |= {name: fmean(unit.speed[name] for unit in units) for name in units[0].speed}
        draft.speed["optimize"] = result.states_trained / (perf_counter() - began)
        after = next_checkpoint(checkpoint, learner, experience, result)
        draft.metrics += metrics_of_play(checkpoint, experience, played, swept)
        draft.metrics += optimization_metrics(result, after.metadata.counters)
        write_checkpoint(draft.directory, after)
    keep_learner(draft.unit, after, learner)
    return reference(draft.unit)


def older_cycles(run: StoredRun, cycle: int) -> list[list[Unit]]:
    """The experience that the replay memory holds beside that of `cycle`, oldest first, each cycle in its shards.

    Raises:
        StorageError: some of it is gone or corrupt.
    """
    replayed, kinds = run.config.replay_cycles, run.kinds(EXPERIENCE)
    try:
        return [[run.unit(kind, old) for kind in kinds] for old in range(max(1, cycle - replayed + 1), cycle)]
    except StorageError as error:
        raise StorageError(
            f"{error}; with replay_cycles={replayed} cycle {cycle} cannot be optimized without it: start a new run"
        ) from None


def replay_of(cycles: list[list[Unit]], learner: Learner) -> tuple[Experience, ReplayMemory]:
    """The last cycle's experience, without its states, and the replay memory of all `cycles`, each in its shards.

    `learner` played the last one; the estimates of the others are made anew, and all are swept as one.
    Every state is in memory once, so what is still held of the last cycle is let go.
    """
    let_go_of_experience()
    directories = [[unit.directory for unit in shards] for shards in cycles]
    played = read_experiences(directories[-1:], with_states=False)
    experience = cut_at_starts(read_experiences(directories))
    experience = reestimated(experience, experience.steps - played.steps, learner.estimate)
    return played, ReplayMemory.of(experience, backward_sweep(experience, SweepRule.of(learner.config)))


def metrics_of_play(before: Checkpoint, experience: Experience, played: list[Unit], swept: list[Unit]) -> list[Metric]:
    """The metrics of a cycle's play and sweep: of their units, or of all lanes where those are only shards."""
    if len(played) == 1:
        return [*played[0].metrics, *swept[0].metrics]
    config, states = before.config, before.metadata.counters.states
    _, finished = advance(before.histories, experience, states)
    scores, _ = score_metrics(before.metadata.recent_scores, finished)
    targets = read_all_targets([unit.directory for unit in swept])
    return play_metrics(config, experience, states) + scores + sweep_metrics(config, experience, targets, states)
