from __future__ import annotations

import math
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import torch

import storage.runs
from dqn.checkpoint import Checkpoint, CheckpointMetadata, Counters, first_checkpoint
from dqn.config import TrainConfig, make_config
from dqn.metrics import Metric
from storage.formats.checkpoint import write_checkpoint
from storage.publication import publish, resume_run
from storage.run_catalog import runs_in_mlflow
from storage.run_list import list_runs
from storage.run_rows import read_rows
from storage.runs import StoredRun, create_run, open_run, open_tracking
from storage.units.unit import CHECKPOINT, TARGETS

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

NAMES = ["NOOP", "FIRE"]
from small_run import another_process, commit, damage, train

# ---------------------------------------------------------------- runs in MLflow


def point_count(run: StoredRun) -> dict[str, int]:
    names = run.tracking.get_run(run.run_id).data.metrics
    return {name: len(run.tracking.history(run.run_id, name)) for name in names}


def test_created_run_has_checkpoint_params_and_tags(
    home: Path, tiny: TrainConfig, same: Callable[[object, object], bool]
) -> None:
    run = create_run(tiny, NAMES, "mine", {"dqn.preset": "tutorial"})
    unit = run.newest_checkpoint()
    assert (unit.kind, unit.cycle, unit.inputs) == (CHECKPOINT, 0, {})
    assert unit.directory.is_relative_to(home / "artifacts" / "Breakout" / run.run_id)
    assert same(run.checkpoint(unit), first_checkpoint(tiny, NAMES))
    assert run.metadata(unit) == CheckpointMetadata(tiny, tuple(NAMES), Counters())
    stored = run.tracking.get_run(run.run_id)
    assert stored.data.params["lanes"] == "3"
    assert stored.data.tags["dqn.preset"] == "tutorial"
    assert (stored.info.run_name, stored.info.status, run.name) == ("mine", "RUNNING", "mine")
    assert not run.is_held()
    assert list((home / "staging" / run.run_id).iterdir()) == []


def test_same_config_makes_same_first_checkpoint(home: Path, tiny: TrainConfig) -> None:
    other = tiny.model_copy(update={"seed": 8})
    digests = [create_run(config, NAMES, None, {}).newest_checkpoint().digest for config in (tiny, tiny, other)]
    assert digests[0] == digests[1] != digests[2]


def test_open_run_equals_created_run(home: Path, tiny: TrainConfig) -> None:
    run = create_run(tiny, NAMES, None, {})
    assert open_run(run.run_id) == run
    storage.runs._tracking.cache_clear()
    storage.runs._stored_run.cache_clear()
    again = open_run(run.run_id)
    assert (again.name, again.artifacts, again.settings) == (run.name, run.artifacts, run.settings)
    assert again.newest_checkpoint() == run.newest_checkpoint()


def test_tracking_is_opened_once_in_a_process(home: Path) -> None:
    assert open_tracking() is open_tracking()


def test_publish_is_idempotent(home: Path, tiny: TrainConfig) -> None:
    run = create_run(tiny, NAMES, None, {})
    for cycle in (1, 2):
        commit(run, TARGETS, cycle)
    for _ in range(3):
        publish(run, run.unit(TARGETS, 1))
        publish(run, run.unit(TARGETS, 2))
    assert point_count(run) == {"counter/states": 2, "loss/mean": 2}


def test_unit_of_a_killed_writer_is_published_once(home: Path, tiny: TrainConfig) -> None:
    run = create_run(tiny, NAMES, None, {})
    commit(run, TARGETS, 1)
    unit = run.made(TARGETS, 1, {})
    assert unit is not None
    publish(run, unit)
    assert point_count(run) == {"counter/states": 1, "loss/mean": 1}


def test_unit_made_again_publishes_no_point_twice(home: Path, tiny: TrainConfig) -> None:
    run = create_run(tiny, NAMES, None, {})
    first = commit(run, TARGETS, 1)
    publish(run, first)
    damage(first)
    assert run.made(TARGETS, 1, {}) is None
    time.sleep(0.002)  # it is made again at another time
    again = commit(run, TARGETS, 1)
    assert again.created_ms > first.created_ms
    publish(run, again)
    assert point_count(run) == {"counter/states": 1, "loss/mean": 1}


def test_resume_publishes_once_and_prunes(
    home: Path, small_config: TrainConfig, tiny: TrainConfig, make_checkpoint: Callable[..., Checkpoint]
) -> None:
    run = create_run(tiny, NAMES, None, {})
    for cycle in range(1, 7):
        commit(run, TARGETS, cycle)
        with run.commit(CHECKPOINT, cycle, {}) as draft:
            write_checkpoint(draft.directory, make_checkpoint())
            draft.metrics.append(Metric("counter/cycles", 10 * cycle, cycle))
    (run.unit(CHECKPOINT, 6).directory / "weights.safetensors").write_bytes(b"damaged")
    for _ in range(2):
        assert resume_run(run) == run.unit(CHECKPOINT, 5)
    assert point_count(run) == {"counter/cycles": 1}
    assert small_config.keep_cycles == 3
    assert run.cycles(CHECKPOINT) == [6, 5, 4, 3]  # the damaged one will be made again
    assert run.cycles(TARGETS) == [6, 5, 4, 3]


def test_runs_are_listed_newest_first_with_their_state(home: Path, tiny: TrainConfig) -> None:
    first = create_run(tiny, NAMES, "first", {"dqn.preset": "tutorial"})
    create_run(tiny, NAMES, "second", {})
    with first.commit(CHECKPOINT, 1, {}) as draft:
        draft.metrics += [Metric("counter/states", 60, 60), Metric("score/mean_100", 60, 1.5)]
    publish(first, first.unit(CHECKPOINT, 1))
    first.tracking.set_status(first.run_id, "FINISHED")
    rows = list_runs()
    assert [row.name for row in rows] == ["second", "first"]
    row = rows[1]
    assert (row.id, row.game, row.preset) == (first.run_id, tiny.game, "tutorial")
    assert (row.status, row.states, row.score) == ("finished", 60, 1.5)
    assert row.started == time.strftime("%Y-%m-%d %H:%M", time.localtime(_started(first)))
    assert (rows[0].states, rows[0].score, rows[0].preset) == (0, None, "")


def _started(run: StoredRun) -> float:
    return float(run.tracking.get_run(run.run_id).info.start_time / 1000)


@pytest.mark.parametrize("shards", ["", "x", "0", "-1"])
def test_run_with_a_damaged_param_hides_no_other(home: Path, tiny: TrainConfig, shards: str) -> None:
    run = create_run(tiny, NAMES, "first", {})
    for each in (run, create_run(tiny, NAMES, "second", {})):
        each.tracking.set_status(each.run_id, "FINISHED")
    with closing(sqlite3.connect(home / "mlflow.db")) as database, database:
        database.execute("UPDATE params SET value = ? WHERE key = 'shards' AND run_uuid = ?", (shards, run.run_id))
    storage.runs._stored_run.cache_clear()
    assert [row.name for row in list_runs()] == ["second"]


def test_empty_store_lists_no_runs(home: Path) -> None:
    assert list_runs() == []


def test_run_of_a_dead_writer_is_marked_as_killed(home: Path, tiny: TrainConfig) -> None:
    dead, alive = create_run(tiny, NAMES, "dead", {}), create_run(tiny, NAMES, "alive", {})
    with another_process(lambda say: train(dead, say)) as (_, hears):
        hears()
    with another_process(lambda say: train(alive, say)) as (_, hears):
        hears()
        assert {row.name: row.status for row in list_runs()} == {"dead": "killed", "alive": "running"}
        statuses = {run.info.run_name: run.info.status for run in open_tracking().runs()}
        assert statuses == {"dead": "KILLED", "alive": "RUNNING"}


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED"])
def test_ended_run_keeps_its_status(home: Path, tiny: TrainConfig, status: str) -> None:
    run = create_run(tiny, NAMES, None, {})
    run.tracking.set_status(run.run_id, status)
    assert [row.status for row in list_runs()] == [status.lower()]
    assert run.tracking.get_run(run.run_id).info.status == status


def test_unusable_home_is_refused_before_anything_is_created(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: TrainConfig
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("DQN_HOME", str(tmp_path / "file" / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(OSError, match=r"file/home"):
        create_run(tiny, NAMES, None, {})
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_run_returns_its_checkpoints(
    run: StoredRun, make_checkpoint: Callable[..., Checkpoint], same: Callable[[object, object], bool]
) -> None:
    with run.commit(CHECKPOINT, 3, {}) as draft:
        write_checkpoint(draft.directory, make_checkpoint())
    unit = run.newest_checkpoint()
    assert same(run.checkpoint(unit), make_checkpoint())
    assert run.metadata(unit) == make_checkpoint().metadata
    assert torch.is_tensor(run.checkpoint(unit).weights["dense.weight"])
    assert make_config("tutorial", {"lanes": 3}).lanes == run.metadata(unit).config.lanes


def test_run_of_another_machine_is_not_marked(home: Path, tiny: TrainConfig) -> None:
    run = create_run(tiny, NAMES, "elsewhere", {})
    run.settings.lock(run.run_id).unlink()
    assert [row.status for row in list_runs()] == ["running"]
    with run.writing():
        pass
    assert [row.status for row in list_runs()] == ["killed"]


def test_both_ways_to_list_runs_agree(home: Path, tiny: TrainConfig) -> None:
    """One reads the database itself, the other one requests the runs from MLflow."""
    for number, status in enumerate(("FINISHED", "FAILED", "RUNNING")):
        run = create_run(tiny, NAMES, f"run {number}", {"dqn.preset": "tutorial"} if number else {})
        with run.commit(CHECKPOINT, 1, {}) as draft:
            score = [Metric("score/mean_100", 60, math.nan if number == 1 else 1.5)] if number else []
            draft.metrics += [Metric("counter/states", 60 + number, 60 + number), *score]
        publish(run, run.unit(CHECKPOINT, 1))
        run.tracking.set_status(run.run_id, status)
    create_run(tiny, NAMES, "deleted", {}).tracking.delete_run(open_tracking().find_run("deleted").info.run_id)
    run.settings.lock(run.run_id).unlink()  # as if another machine trained it
    rows = read_rows(home / "mlflow.db", run.settings)
    assert rows is not None and [row.name for row in rows] == ["run 2", "run 1", "run 0"]
    found = runs_in_mlflow()
    assert [row._replace(score=None) for row in rows] == [row._replace(score=None) for row in found]
    assert [row.score for row in rows] == [1.5, None, None]


def test_list_of_runs_imports_neither_torch_nor_mlflow(home: Path, tiny: TrainConfig) -> None:
    """Their imports take seconds."""
    run = create_run(tiny, NAMES, "first", {})
    run.tracking.set_status(run.run_id, "FINISHED")
    code = """
import sys
import flows.cli.display
from storage.run_list import list_runs
(row,) = list_runs()
sys.exit(bool({"torch", "mlflow", "sqlalchemy"} & set(sys.modules)))
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_other_tables_are_left_to_mlflow(home: Path, tiny: TrainConfig) -> None:
    run = create_run(tiny, NAMES, "first", {})
    run.tracking.set_status(run.run_id, "FINISHED")
    assert read_rows(home / "mlflow.db", run.settings) == list_runs()
    with closing(sqlite3.connect(home / "mlflow.db")) as database, database:
        database.execute("ALTER TABLE latest_metrics RENAME TO others")
    assert read_rows(home / "mlflow.db", run.settings) is None
    assert read_rows(home / "none.db", run.settings) == []
