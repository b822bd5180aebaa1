"""Train the network on one cycle's targets and commit the checkpoint. Its metrics are published by the flow."""

from __future__ import annotations

from statistics import fmean
from time import perf_counter

from prefect import task
from prefect.cache_policies import NO_CACHE

from dqn.checkpoint import Checkpoint
from dqn.cycle import after_optimization, after_play, replay_memory
from dqn.envs.experience import Experience
from dqn.envs.histories import advance
from dqn.hardware import memory_advice
from dqn.learning.learner import Learner
from dqn.learning.optimization import OptimizationResult, train_on
from dqn.learning.replay import ReplayMemory
from dqn.metrics import Metric, optimization_metrics, play_metrics, score_metrics, sweep_metrics
from storage.errors import StorageError
from storage.formats.checkpoint import write_checkpoint
from storage.formats.experience import read_all_targets, read_experiences
from storage.runs import StoredRun, open_run
from storage.units.unit import CHECKPOINT, EXPERIENCE, Unit, cycle_name
from tasks.process_cache import CACHE
from tasks.progress import report
from tasks.unit_reference import UnitReference, made_by

NAME = "optimize"


@task(name=NAME, task_run_name="optimize-{checkpoint.next_cycle:05d}", cache_policy=NO_CACHE)
def optimize(
    run_id: str, checkpoint: UnitReference, experience: list[UnitReference], targets: list[UnitReference]
) -> UnitReference:
    """Train the network of `checkpoint` towards `targets`; commit the next checkpoint with the metrics of the cycle.

    Args:
        run_id: id of the run.
        checkpoint: state of the run before the cycle.
        experience: of the cycle, from every shard.
        targets: swept from `experience`, from every shard.
    """
    run, cycle = open_run(run_id), checkpoint.cycle + 1
    sharded = run.shards > 1  # then the cache lacks the states, so that all files are read, and must be checked
    played, swept = ([unit.open(run, read=sharded) for unit in units] for units in (experience, targets))
    older = older_cycles(run, cycle)
    inputs = {"checkpoint": checkpoint.digest, **{str(unit.kind): unit.digest for unit in (*played, *swept)}}
    inputs |= {f"{unit.kind}-{cycle_name(unit.cycle)}": unit.digest for shards in older for unit in shards}
    if unit := run.made(CHECKPOINT, cycle, inputs):
        return UnitReference.of(unit)
    before, learner = CACHE.pop_learner(run, checkpoint.open(run))
    table, memory = load_replay(older, played, swept, learner)
    with run.commit(CHECKPOINT, cycle, inputs, made_by()) as draft:
        began = perf_counter()
        result = train(before, learner, memory)
        for units in (played, swept):
            draft.speed |= {name: fmean(unit.speed[name] for unit in units) for name in units[0].speed}
        draft.speed[NAME] = result.states_trained / (perf_counter() - began)
        after = after_optimization(after_play(before, table), learner, result)
        draft.metrics += play_and_sweep_metrics(before, table, played, swept)
        draft.metrics += optimization_metrics(result, after.metadata.counters)
        write_checkpoint(draft.directory, after)
    CACHE.put_learner(draft.unit, after, learner)
    return UnitReference.of(draft.unit)


def older_cycles(run: StoredRun, cycle: int) -> list[list[Unit]]:
    """The experience of earlier cycles in the replay memory of `cycle`, oldest first, each cycle in its shards.

    Raises:
        StorageError: some of it is missing or corrupt.
    """
    replayed, kinds = run.config.replay_cycles, EXPERIENCE.of_shards(run.shards)
    try:
        return [[run.unit(kind, old) for kind in kinds] for old in range(max(1, cycle - replayed + 1), cycle)]
    except StorageError as error:
        raise StorageError(
            f"{error}; with replay_cycles={replayed} cycle {cycle} cannot be optimized without it: start a new run"
        ) from None


def load_replay(
    older: list[list[Unit]], played: list[Unit], swept: list[Unit], learner: Learner
) -> tuple[Experience, ReplayMemory]:
    """The experience of the newest cycle, perhaps without its states, and the replay memory.

    Args:
        older: experience of earlier cycles, each in its shards.
        played: experience of the newest cycle, in its shards.
        swept: its targets, in their shards; with `older` cycles all are swept again.
        learner: played the newest cycle and estimates the older ones again.
    """
    if not older:
        experience, targets = CACHE.pop_experience(played, swept)
        return experience, ReplayMemory.of(experience, targets)
    CACHE.drop_experience(played[0].cycle)  # every state of these cycles is in memory once
    directories = [[unit.directory for unit in shards] for shards in (*older, played)]
    newest = read_experiences(directories[-1:], with_states=False)
    return newest, replay_memory(read_experiences(directories), newest.steps, learner)


def train(before: Checkpoint, learner: Learner, memory: ReplayMemory) -> OptimizationResult:
    """Train `learner` on `memory`, in several processes where the configuration asks for them."""
    config, counters = before.config, before.metadata.counters
    cycle = counters.cycle + 1
    train_in = train_on if config.optimizer_processes == 1 else CACHE.processes_of(before).train_on
    with memory_advice(f"start a run with a batch_size below {config.batch_size}, or with a smaller network"):
        return train_in(
            learner,
            memory,
            cycle,
            config.scheduled(counters.states),
            lambda done, batches: report(NAME, cycle, done, batches),
        )


def play_and_sweep_metrics(
    before: Checkpoint, experience: Experience, played: list[Unit], swept: list[Unit]
) -> list[Metric]:
    """The metrics of a cycle's play and sweep: those of their units, or of all shards together."""
    if len(played) == 1:
        return [*played[0].metrics, *swept[0].metrics]
    config, states = before.config, before.metadata.counters.states
    _, finished = advance(before.histories, experience, states)
    scores, _ = score_metrics(before.metadata.recent_scores, finished)
    targets = read_all_targets([unit.directory for unit in swept])
    return play_metrics(config, experience, states) + scores + sweep_metrics(config, experience, targets, states)
