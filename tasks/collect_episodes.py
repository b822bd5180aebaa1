"""Play one cycle's states and commit them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from time import perf_counter

from prefect import task
from prefect.cache_policies import NO_CACHE

from dqn.checkpoint import Checkpoint
from dqn.cycle import after_play, collect
from dqn.envs.histories import advance
from dqn.envs.lanes import closed_on_failure
from dqn.hardware import memory_advice
from dqn.metrics import play_metrics, score_metrics
from storage.errors import StorageError
from storage.formats.experience import write_experience
from storage.runs import StoredRun, open_run
from storage.units.unit import CHECKPOINT, EXPERIENCE, Unit
from tasks.process_cache import CACHE
from tasks.progress import report
from tasks.unit_reference import UnitReference, made_by, task_run_name

NAME = "collect-episodes"


@task(name=NAME, task_run_name=task_run_name(NAME), cache_policy=NO_CACHE)
def collect_episodes(
    run_id: str, checkpoint: UnitReference, shard: int = 0, since: tuple[UnitReference, ...] = ()
) -> UnitReference:
    """Play the lanes of a shard for the next cycle; commit states and Q-values.

    Args:
        run_id: id of the run.
        checkpoint: its network plays.
        shard: number of the shard.
        since: with `overlap`, the experience of every shard in the cycle after `checkpoint`. Play goes on where it
            ends, although the network has not been trained on it yet.
    """
    run = open_run(run_id)
    cycle = (since[0] if since else checkpoint).cycle + 1
    kind, inputs = EXPERIENCE.of_shards(run.shards)[shard], {"checkpoint": checkpoint.digest}
    inputs |= {str(unit.kind): unit.digest for unit in since}
    if unit := run.made(kind, cycle, inputs):
        return UnitReference.of(unit)
    start = checkpoint.open(run)
    described, actor = CACHE.pop_actor(run, start)
    before = state_after(run, described, inputs, since) if since else described
    played = since[shard].digest if since else start.inputs.get(str(kind), "")
    lanes = CACHE.pop_lanes(played, before, shard)
    with closed_on_failure(lanes), run.commit(kind, cycle, inputs, made_by()) as draft:
        began = perf_counter()
        with memory_advice(f"start a run with lanes below {run.config.lanes}, or with more lane_groups"):
            experience = collect(before, actor, lanes, shard, lambda done, steps: report(NAME, cycle, done, steps))
        write_experience(draft.directory, experience)
        if run.shards == 1:  # metrics of all shards together are logged by `optimize`
            states = before.metadata.counters.states
            _, finished = advance(before.histories, experience, states)
            scores, _ = score_metrics(before.metadata.recent_scores, finished)
            draft.metrics += play_metrics(before.config, experience, states) + scores
        draft.speed[NAME] = experience.states_played / (perf_counter() - began)
    CACHE.put_played(draft.unit, lanes, experience)
    CACHE.put_actor(start, described, actor)
    return UnitReference.of(draft.unit)


def state_after(
    run: StoredRun, checkpoint: Checkpoint, inputs: Mapping[str, str], since: Sequence[UnitReference]
) -> Checkpoint:
    """The state of the run after `checkpoint` and the experience `since`, with the weights of `checkpoint`.

    A run that resumes has the next checkpoint, which contains this state, and may have no experience any more.

    Args:
        run: the run.
        checkpoint: of the cycle before that of `since`.
        inputs: digests of `checkpoint` and `since`, by kind.
        since: experience of every shard.
    """
    following = None
    with suppress(StorageError):
        following = run.unit(CHECKPOINT, since[0].cycle)
    if following is None or not inputs.items() <= following.inputs.items():
        return after_play(checkpoint, CACHE.played([unit.open(run) for unit in since]))
    found = run.checkpoint(following)
    return replace(checkpoint, metadata=found.metadata, histories=found.histories)


def next_play(run: StoredRun, checkpoint: Unit) -> tuple[UnitReference, tuple[UnitReference, ...]]:
    """What the play of the cycle after `checkpoint` depends on: `checkpoint` and `since` of `collect_episodes`."""
    if run.config.overlap == "no" or checkpoint.cycle == 0:
        return UnitReference.of(checkpoint), ()
    before = UnitReference(CHECKPOINT, checkpoint.cycle - 1, checkpoint.inputs["checkpoint"], {})
    return before, tuple(
        UnitReference(kind, checkpoint.cycle, checkpoint.inputs[str(kind)], {})
        for kind in EXPERIENCE.of_shards(run.shards)
    )
