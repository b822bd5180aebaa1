"""What tasks hand to each other in memory is just what they would read from the disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dqn.envs.games import action_names
from flows.parameters import requested_config
from flows.train import publish_and_prune
from storage.errors import CorruptUnitError
from storage.runs import StoredRun, create_run, open_run
from storage.units.unit import CHECKPOINT, EXPERIENCE, TARGETS
from tasks import process_cache
from tasks.collect_episodes import collect_episodes
from tasks.optimize import optimize
from tasks.update_q_values import update_q_values

TASKS = (collect_episodes, update_q_values, optimize)
SETTINGS = {"lanes": 4, "lane_groups": 2, "replay_states": 64, "batch_size": 16, "threads": 2}

pytestmark = pytest.mark.usefixtures("home")


def started(name: str, seed: int = 0) -> StoredRun:
    config = requested_config("fast", {**SETTINGS, "seed": seed})
    return create_run(config, action_names(config.game), name, {})


def go_on(run: StoredRun, cycles: int, between: Callable[[], None] = lambda: None) -> str:
    """Do the cycles; the digest of the last checkpoint."""
    for cycle in range(1, cycles + 1):
        for task in TASKS:
            reference = task.fn(run.run_id, cycle)
            between()
        publish_and_prune(run, reference)
    return reference.digest


def test_tasks_that_hand_on_what_they_hold_do_what_those_do_that_read_it() -> None:
    assert go_on(started("held"), 2) == go_on(started("read"), 2, between=process_cache.release)


def test_what_is_held_does_not_suffer_from_a_disk_that_does() -> None:
    whole = go_on(started("whole"), 1)
    run = started("damaged")
    collect_episodes.fn(run.run_id, 1)
    chunk = next(run.unit(EXPERIENCE, 1).directory.glob("experience.zarr/states/c*"))
    chunk.write_bytes(b"damaged")
    with pytest.raises(CorruptUnitError, match=chunk.name):
        run.unit(EXPERIENCE, 1)
    update_q_values.fn(run.run_id, 1)
    assert optimize.fn(run.run_id, 1).digest == whole


def test_what_is_not_held_is_checked() -> None:
    run = started("checked")
    collect_episodes.fn(run.run_id, 1)
    process_cache.release()
    next(run.unit(EXPERIENCE, 1).directory.glob("experience.zarr/actions/c*")).write_bytes(b"damaged")
    with pytest.raises(CorruptUnitError, match="SHA-256 differs"):
        update_q_values.fn(run.run_id, 1)


def test_another_runs_things_are_not_taken() -> None:
    other, run = started("other", seed=1), started("own", seed=2)
    collect_episodes.fn(other.run_id, 1)
    held = process_cache.played(other.unit(EXPERIENCE, 1))
    collect_episodes.fn(run.run_id, 1)
    own = process_cache.played(run.unit(EXPERIENCE, 1))
    assert not np.array_equal(own.actions, held.actions)
    assert process_cache.played(other.unit(EXPERIENCE, 1)).states.size == 0, "read anew, without its states"


def test_a_checkpoint_has_the_metrics_of_its_whole_cycle_and_they_are_published_once() -> None:
    run = started("metrics")
    go_on(run, 1)
    unit, played = run.unit(CHECKPOINT, 1), run.unit(EXPERIENCE, 1)
    assert set(played.metrics) | set(run.unit(TARGETS, 1).metrics) < set(unit.metrics)
    assert {"collect-episodes", "update-q-values", "optimize"} == set(unit.speed)
    found = open_run(run.run_id).tracking.get_run(run.run_id).data.metrics
    assert {metric.name for metric in unit.metrics} <= set(found)
    assert {f"speed/{name}" for name in unit.speed} <= set(found)


def test_games_are_closed_when_they_are_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    run = started("closed")
    collect_episodes.fn(run.run_id, 1)
    closed: list[int] = []
    groups = process_cache._held["lanes"][1]
    for number, lanes in enumerate(groups):
        monkeypatch.setattr(lanes, "close", lambda number=number: closed.append(number))
    process_cache.release()
    assert closed == [0, 1] and not process_cache._held


def test_the_home_holds_no_drafts_afterwards(home: Path) -> None:
    run = started("tidy")
    go_on(run, 1)
    assert not list((home / "staging" / run.run_id).glob("*"))
