"""The tasks of one cycle without Prefect around them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flows.train import publish_and_prune
from storage.runs import StoredRun
from tasks.collect_episodes import collect_episodes
from tasks.optimize import optimize
from tasks.unit_reference import UnitReference
from tasks.update_q_values import update_q_values


def play_and_sweep(
    run: StoredRun,
    checkpoint: UnitReference,
    order: Sequence[int] | None = None,
    between: Callable[[], None] = lambda: None,
) -> tuple[list[UnitReference], list[UnitReference]]:
    """The experience and the targets of the cycle after `checkpoint`, of every shard; shards are played in `order`."""
    experience, targets = {}, {}
    for shard in order or range(run.shards):
        experience[shard] = collect_episodes.fn(run.run_id, checkpoint, shard)
        between()
    for shard in order or range(run.shards):
        targets[shard] = update_q_values.fn(run.run_id, experience[shard])
        between()
    return [experience[shard] for shard in sorted(experience)], [targets[shard] for shard in sorted(targets)]


def run_cycles(
    run: StoredRun, count: int, order: Sequence[int] | None = None, between: Callable[[], None] = lambda: None
) -> UnitReference:
    """Run `count` cycles from the newest checkpoint on; `between` is called after every task."""
    checkpoint = UnitReference.of(run.newest_checkpoint())
    for _ in range(count):
        experience, targets = play_and_sweep(run, checkpoint, order, between)
        checkpoint = optimize.fn(run.run_id, checkpoint, experience, targets)
        between()
        publish_and_prune(run, checkpoint)
    return checkpoint
