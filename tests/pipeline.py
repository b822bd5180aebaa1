"""The tasks of one cycle without Prefect around them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flows.train import publish_and_prune
from storage.runs import StoredRun
from storage.units.unit import CHECKPOINT
from tasks.collect_episodes import collect_episodes, next_play
from tasks.optimize import optimize
from tasks.unit_reference import UnitReference
from tasks.update_q_values import update_q_values


def play_and_sweep(
    run: StoredRun,
    checkpoint: UnitReference,
    order: Sequence[int] | None = None,
    between: Callable[[], None] = lambda: None,
    *,
    is_last: bool = False,
) -> tuple[list[UnitReference], list[UnitReference]]:
    """The experience and the targets of the cycle after `checkpoint`, of every shard; shards are played in `order`.

    With `overlap` the next cycle is played, too, unless this one is the last: its units are found by the next call.
    """
    player, since = next_play(run, run.unit(CHECKPOINT, checkpoint.cycle))
    experience = _play(run, player, since, order, between)
    if run.config.overlap == "yes" and not is_last:
        _play(run, checkpoint, tuple(experience), order, between)
    targets = {}
    for shard in order or range(run.shards):
        targets[shard] = update_q_values.fn(run.run_id, experience[shard])
        between()
    return experience, [targets[shard] for shard in sorted(targets)]


def _play(
    run: StoredRun,
    player: UnitReference,
    since: tuple[UnitReference, ...],
    order: Sequence[int] | None,
    between: Callable[[], None],
) -> list[UnitReference]:
    experience = {}
    for shard in order or range(run.shards):
        experience[shard] = collect_episodes.fn(run.run_id, player, shard, since)
        between()
    return [experience[shard] for shard in sorted(experience)]


def run_cycles(
    run: StoredRun, count: int, order: Sequence[int] | None = None, between: Callable[[], None] = lambda: None
) -> UnitReference:
    """Run `count` cycles from the newest checkpoint on; `between` is called after every task."""
    checkpoint = UnitReference.of(run.newest_checkpoint())
    for left in reversed(range(count)):
        experience, targets = play_and_sweep(run, checkpoint, order, between, is_last=left == 0)
        checkpoint = optimize.fn(run.run_id, checkpoint, experience, targets)
        between()
        publish_and_prune(run, checkpoint)
    return checkpoint
