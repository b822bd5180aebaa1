"""Objects in the process cache equal what would be read from their units."""

from __future__ import annotations

import pickle
from dataclasses import replace
from threading import Lock
from types import SimpleNamespace
from typing import Any

import cloudpickle
import numpy as np
import pytest
from pipeline import run_cycles

from dqn.envs.games import action_names
from flows.parameters import requested_config
from storage.errors import CorruptUnitError, StorageError
from storage.runs import StoredRun, create_run, open_run
from storage.units.unit import CHECKPOINT, EXPERIENCE, TARGETS
from tasks import process_cache
from tasks.collect_episodes import collect_episodes
from tasks.optimize import optimize
from tasks.process_cache import CACHE, Slot
from tasks.unit_reference import UnitReference
from tasks.update_q_values import update_q_values

SETTINGS = {"lanes": 2, "lane_groups": 2, "replay_states": 64, "batch_size": 16, "threads": 2, "network": "small"}

pytestmark = pytest.mark.usefixtures("home")


def created(name: str, **settings: Any) -> StoredRun:
    config = requested_config("fast", {**SETTINGS, **settings})
    return create_run(config, action_names(config.game), name, {})


def first_checkpoint(run: StoredRun) -> UnitReference:
    return UnitReference.of(run.unit(CHECKPOINT, 0))


def test_cached_objects_equal_stored_ones() -> None:
    cached, read = (created(name, network="residual") for name in ("cached", "read"))
    assert run_cycles(cached, 2).digest == run_cycles(read, 2, between=process_cache.clear).digest


def test_damaged_file_of_cached_experience_changes_nothing() -> None:
    whole = run_cycles(created("whole"), 1).digest
    run = created("damaged")
    checkpoint = first_checkpoint(run)
    experience = collect_episodes.fn(run.run_id, checkpoint)
    chunk = next(run.unit(EXPERIENCE, 1).directory.glob("experience.zarr/states/c*"))
    chunk.write_bytes(b"damaged")
    with pytest.raises(CorruptUnitError, match=chunk.name):
        run.unit(EXPERIENCE, 1)
    targets = update_q_values.fn(run.run_id, experience)
    assert optimize.fn(run.run_id, checkpoint, [experience], [targets]).digest == whole


def test_files_that_are_not_cached_are_verified() -> None:
    run = created("verified")
    experience = collect_episodes.fn(run.run_id, first_checkpoint(run))
    process_cache.clear()
    next(run.unit(EXPERIENCE, 1).directory.glob("experience.zarr/actions/c*")).write_bytes(b"damaged")
    with pytest.raises(CorruptUnitError, match="SHA-256 differs"):
        update_q_values.fn(run.run_id, experience)


def test_replaced_unit_is_refused() -> None:
    """A reference names the unit that its task committed, not whatever unit its cycle has now."""
    run = created("replaced")
    experience = collect_episodes.fn(run.run_id, first_checkpoint(run))
    process_cache.clear()
    with run.commit(EXPERIENCE, 1, {}) as draft:
        (draft.directory / "other").write_bytes(b"other")
    with pytest.raises(StorageError, match=r"experience of cycle 1 of run .* was replaced"):
        update_q_values.fn(run.run_id, experience)


def test_experience_of_another_run_is_not_used() -> None:
    other, run = created("other", seed=1), created("own", seed=2)
    collect_episodes.fn(other.run_id, first_checkpoint(other))
    cached = CACHE.played([other.unit(EXPERIENCE, 1)])
    collect_episodes.fn(run.run_id, first_checkpoint(run))
    own = CACHE.played([run.unit(EXPERIENCE, 1)])
    assert not np.array_equal(own.actions, cached.actions)
    np.testing.assert_equal(CACHE.played([other.unit(EXPERIENCE, 1)]).actions, cached.actions)


def test_checkpoint_has_the_metrics_of_its_cycle() -> None:
    run = created("metrics")
    run_cycles(run, 1)
    unit, played = run.unit(CHECKPOINT, 1), run.unit(EXPERIENCE, 1)
    assert set(played.metrics) | set(run.unit(TARGETS, 1).metrics) < set(unit.metrics)
    assert {"collect-episodes", "update-q-values", "optimize"} == set(unit.speed)
    found = open_run(run.run_id).tracking.get_run(run.run_id).data.metrics
    assert {metric.name for metric in unit.metrics} <= set(found)
    assert {f"speed/{name}" for name in unit.speed} <= set(found)


def test_games_are_closed_when_the_cache_is_cleared(monkeypatch: pytest.MonkeyPatch) -> None:
    run = created("closed")
    experience = collect_episodes.fn(run.run_id, first_checkpoint(run))
    closed: list[int] = []
    groups = CACHE.lanes[0].get(experience.digest)
    assert groups is not None and len(groups) == 2
    for number, lanes in enumerate(groups):
        monkeypatch.setattr(lanes, "close", lambda number=number: closed.append(number))
    process_cache.clear()
    assert closed == [0, 1] and CACHE.lanes[0].unit is None


@pytest.mark.parametrize("task", [collect_episodes, update_q_values, optimize])
def test_task_that_was_sent_to_a_worker_uses_the_cache_of_its_process(task: Any) -> None:
    """Dask sends a task with everything that it refers to, because Prefect wraps its function."""
    unit: Any = SimpleNamespace(digest="its unit")
    learner: Any = Lock()  # cannot be pickled, as the processes of an optimizer cannot
    CACHE.learner.put(unit, learner)
    try:
        received = pickle.loads(cloudpickle.dumps(task.with_options(retries=2)))
    finally:
        CACHE.clear()
    assert received.fn.__globals__["CACHE"] is CACHE


def test_slot_drops_a_value_of_another_unit() -> None:
    run, dropped = created("slot"), list[str]()
    unit = run.unit(CHECKPOINT, 0)
    slot = Slot[str](dropped.append)
    slot.put(unit, "first")
    assert slot.get("another digest") is None and slot.get(unit.digest) == "first"
    slot.put(unit, "second")
    assert (slot.pop("another digest"), dropped) == (None, ["first", "second"])
    slot.put(unit, "third")
    assert (slot.pop(unit.digest), slot.unit, dropped) == ("third", None, ["first", "second"])


def test_staging_is_empty_after_a_cycle(home: object) -> None:
    run = created("tidy")
    run_cycles(run, 1)
    assert not list(run.settings.staging(run.run_id).glob("*"))


def test_lanes_are_cached_by_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Games of a shard that another process has played since are closed, and opened from the checkpoint."""
    config = requested_config("fast", {**SETTINGS, "shards": 2, "lane_groups": 1})
    run, closed = create_run(config, action_names(config.game), "shards", {}), list[str]()
    start = run.unit(CHECKPOINT, 0)

    def games(name: str) -> Any:
        return [SimpleNamespace(close=lambda: closed.append(name))]

    CACHE.lanes[1].put(replace(start, cycle=-1), games("of an earlier cycle"))
    CACHE.lanes[0].put(start, games("of this cycle"))
    monkeypatch.setattr(process_cache, "open_lanes", lambda config, histories, shard: [f"games of {shard}"])
    opened: object = CACHE.pop_lanes("", run.checkpoint(start), 1)
    assert opened == ["games of 1"] and closed == ["of an earlier cycle"]
