from __future__ import annotations

import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import storage.runs
from dqn.checkpoint import Checkpoint, Counters, Facts, first_checkpoint
from dqn.config import TrainConfig, make_config
from dqn.statistics import Metric
from storage.checkpoints import write_checkpoint
from storage.errors import CorruptUnitError, StorageError
from storage.runs import KINDS, StoredRun, create_run, list_runs, open_run, open_tracking
from storage.settings import Settings
from storage.units import Unit, cycles_in

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

NAMES = ["NOOP", "FIRE"]
RACES = int(os.environ.get("RACES", "4"))


@pytest.fixture
def run(tmp_path: Path) -> StoredRun:
    """A run without MLflow, which nothing of units and locks has to do with."""
    settings = Settings(tmp_path, "sqlite://")
    tracking: Any = None
    return StoredRun("0123456789abcdef", "my-run", settings, tracking, tmp_path / "artifacts" / "0123")


@pytest.fixture
def tiny(small_config: TrainConfig) -> TrainConfig:
    return small_config.model_copy(update={"network": "nature"})


def commit(run: StoredRun, kind: str, cycle: int, inputs: dict[str, str] | None = None, data: bytes = b"x") -> Unit:
    with run.commit(kind, cycle, inputs or {}) as draft:
        (draft.directory / "data").write_bytes(data)
        draft.metrics += [Metric("counter/states", 10 * cycle, 10 * cycle), Metric("loss/mean", 10 * cycle, 0.5)]
    return run.unit(kind, cycle)


def damage(unit: Unit) -> None:
    (unit.directory / "data").write_bytes(b"damaged")


# ---------------------------------------------------------------- units


def test_units_of_every_kind_and_cycle_stand_side_by_side(run: StoredRun) -> None:
    for kind in KINDS:
        for cycle in (0, 1, 100_000):
            commit(run, kind, cycle, data=f"{kind} {cycle}".encode())
    for kind in KINDS:
        for cycle in (0, 1, 100_000):
            unit = run.unit(kind, cycle)
            assert (unit.kind, unit.cycle) == (kind, cycle)
            assert (unit.directory / "data").read_bytes() == f"{kind} {cycle}".encode()


def test_checkpoints_are_artifacts_and_the_rest_is_replay_memory(run: StoredRun) -> None:
    assert run.directory("checkpoint", 3) == run.artifacts / "checkpoints" / "00003"
    assert run.directory("targets", 3) == run.settings.home / "replay" / run.run_id / "targets" / "00003"
    assert run.directory("experience").parent == run.settings.replay(run.run_id)


def test_a_unit_tells_which_run_made_it(run: StoredRun) -> None:
    with run.commit("targets", 1, {}, {"prefect_flow_run_id": "f"}):
        pass
    assert run.unit("targets", 1).made["by"] == {"mlflow_run_id": run.run_id, "prefect_flow_run_id": "f"}


def test_a_unit_that_was_never_made_is_told(run: StoredRun) -> None:
    with pytest.raises(StorageError, match=r"run 0123456789abcdef has no targets of cycle 3"):
        run.unit("targets", 3)


def test_a_damaged_unit_is_told(run: StoredRun) -> None:
    damage(commit(run, "targets", 3))
    with pytest.raises(CorruptUnitError, match=r"targets/00003/data"):
        run.unit("targets", 3)


@pytest.mark.parametrize(("kind", "cycle"), [("experience", 3), ("targets", 4)])
def test_a_unit_in_the_place_of_another_is_told(run: StoredRun, kind: str, cycle: int) -> None:
    unit = commit(run, "targets", 3)
    run.directory(kind).mkdir(parents=True, exist_ok=True)
    unit.directory.rename(run.directory(kind, cycle))
    with pytest.raises(CorruptUnitError, match="is the targets of cycle 3"):
        run.unit(kind, cycle)
    assert run.made(kind, cycle, {}) is None


def test_a_unit_is_made_if_it_was_made_from_the_same_inputs(run: StoredRun) -> None:
    unit = commit(run, "targets", 3, {"experience": "ab", "checkpoint": "cd"})
    assert run.made("targets", 3, {"checkpoint": "cd", "experience": "ab"}) == unit
    for other in ({}, {"experience": "ab"}, {"experience": "ab", "checkpoint": "ce"}):
        assert run.made("targets", 3, other) is None
    assert run.made("targets", 4, {"experience": "ab", "checkpoint": "cd"}) is None
    assert run.made("experience", 3, {"experience": "ab", "checkpoint": "cd"}) is None


def test_a_broken_unit_is_as_good_as_none_and_the_log_says_so(run: StoredRun, caplog: pytest.LogCaptureFixture) -> None:
    damage(commit(run, "targets", 3))
    with caplog.at_level(logging.WARNING):
        assert run.made("targets", 3, {}) is None
    assert "targets/00003/data" in caplog.text
    commit(run, "targets", 3)
    assert run.made("targets", 3, {}) is not None


def test_an_error_of_the_disk_is_no_broken_unit(run: StoredRun, monkeypatch: pytest.MonkeyPatch) -> None:
    commit(run, "checkpoint", 3)

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("storage.units.hashlib.file_digest", fail)
    for look in (lambda: run.made("checkpoint", 3, {}), run.newest_checkpoint):
        with pytest.raises(OSError, match="Input/output error"):
            look()


# ---------------------------------------------------------------- the newest checkpoint, pruning


def test_the_newest_checkpoint_is_the_one_of_the_last_cycle(run: StoredRun) -> None:
    for cycle in (0, 9, 10, 2):
        commit(run, "checkpoint", cycle)
    assert run.newest_checkpoint().cycle == 10


@pytest.mark.parametrize("how", ["flipped", "deleted", "no manifest", "empty", "another's", "a file", "a link"])
def test_the_newest_checkpoint_that_is_whole_is_found_and_the_log_names_the_others(
    run: StoredRun, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    units = [commit(run, "checkpoint", cycle) for cycle in (4, 5, 6)]
    place = units[2].directory
    if how == "flipped":
        damage(units[2])
    elif how in ("deleted", "no manifest"):
        (place / ("data" if how == "deleted" else "manifest.json")).unlink()
    else:
        place.rename(run.directory("checkpoint") / "aside")
        if how == "empty":
            place.mkdir()
        elif how == "another's":
            commit(run, "checkpoint", 7).directory.rename(place)
        elif how == "a file":
            place.write_bytes(b"?")
        else:
            place.symlink_to(units[0].directory)
    damage(units[1])
    with caplog.at_level(logging.WARNING):
        assert run.newest_checkpoint() == units[0]
    assert "checkpoints/00006" in caplog.text
    assert "checkpoints/00005/data" in caplog.text


def test_if_every_checkpoint_is_broken_the_newest_is_named(run: StoredRun) -> None:
    for cycle in (1, 2):
        damage(commit(run, "checkpoint", cycle))
    with pytest.raises(StorageError, match=r"00002/data"):
        run.newest_checkpoint()


def test_without_a_checkpoint_that_is_told(run: StoredRun) -> None:
    with pytest.raises(StorageError, match=r"has no checkpoint; start a new run"):
        run.newest_checkpoint()


def test_foreign_entries_do_not_hide_the_newest_checkpoint(run: StoredRun) -> None:
    unit = commit(run, "checkpoint", 4)
    for name in ("7", "notes", "000008"):
        (run.directory("checkpoint") / name).mkdir()
    assert run.newest_checkpoint() == unit


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_pruning_keeps_the_newest_cycles_of_every_kind(run: StoredRun, keep: int) -> None:
    for kind in KINDS:
        for cycle in range(0 if kind == "checkpoint" else 1, 6):
            commit(run, kind, cycle)
    (run.directory("targets") / "notes").mkdir()
    run.prune(5, keep)
    run.prune(5, keep)
    for kind in KINDS:
        left = sorted(path.name for path in run.directory(kind).iterdir() if path.name != "notes")
        assert left == [f"{cycle:05d}" for cycle in range(6 - keep, 6)]
        assert all(run.unit(kind, int(name)) for name in left)
    assert (run.directory("targets") / "notes").is_dir()
    assert list(run.settings.staging(run.run_id).iterdir()) == []


def test_pruning_before_there_is_anything_is_no_error(run: StoredRun) -> None:
    run.prune(5, 2)


# ---------------------------------------------------------------- one writer


@contextmanager
def another_process(work: Callable[[Callable[[bytes], None]], None]) -> Iterator[tuple[int, Callable[[], bytes]]]:
    """Do `work` in another process; it may say something, and waits to be killed when it is done."""
    out, into = os.pipe()

    def say(said: bytes) -> None:
        os.write(into, said)

    child = os.fork()
    if child == 0:
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(120)  # should this process be killed, nobody else would end that one
            work(say)
            signal.pause()
        finally:
            os._exit(1)
    os.close(into)
    try:
        yield child, lambda: os.read(out, 1000)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(out)


def train(run: StoredRun, say: Callable[[bytes], None]) -> None:
    """Be the writer until killed, in the middle of a commit."""
    try:
        with run.writing(), run.commit("targets", 1, {}) as draft:
            (draft.directory / "data").write_bytes(b"half")
            say(b"writing")
            signal.pause()
    except StorageError as error:
        say(f"refused: {error}".encode())


def test_a_second_process_is_refused_and_told_who_is_at_it(run: StoredRun) -> None:
    with another_process(lambda say: train(run, say)) as (holder, hears):
        assert hears() == b"writing"
        assert run.is_held()
        with pytest.raises(StorageError) as raised, run.writing():
            pytest.fail("two writers")
        told = str(raised.value)
        assert told.startswith(f"run my-run is being trained by process {holder} on {socket.gethostname()} since ")
        assert "\n" not in told
        assert "stop it" in told
        assert list(run.settings.staging(run.run_id).iterdir()), "who is refused must not clear up"


def test_a_killed_holder_blocks_nobody_and_what_it_left_is_cleared(run: StoredRun) -> None:
    with another_process(lambda say: train(run, say)) as (_, hears):
        hears()
    assert not run.is_held()
    assert len(list(run.settings.staging(run.run_id).iterdir())) == 1
    with run.writing():
        assert not run.settings.staging(run.run_id).exists()
        commit(run, "targets", 1)
    assert list(run.settings.staging(run.run_id).iterdir()) == []


def test_the_lock_is_released_at_the_end_and_after_an_error(run: StoredRun) -> None:
    def fail() -> None:
        with run.writing():
            assert run.is_held()
            raise ZeroDivisionError

    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            fail()
        assert not run.is_held()
        with run.writing():
            assert run.is_held()
        assert not run.is_held()


def test_a_run_nobody_ever_trained_is_not_held_and_asking_leaves_nothing(run: StoredRun) -> None:
    assert not run.is_held()
    assert not run.settings.lock(run.run_id).exists()


def test_runs_do_not_hold_each_other(run: StoredRun) -> None:
    other = replace(run, run_id="fedcba")
    with run.writing(), other.writing():
        assert run.is_held() and other.is_held()


def test_the_message_names_the_holder_of_now_not_the_one_before(run: StoredRun) -> None:
    with another_process(lambda say: train(run, say)) as (_, hears):
        hears()
    with another_process(lambda say: train(run, say)) as (holder, hears):
        assert hears() == b"writing"
        with pytest.raises(StorageError, match=rf"by process {holder} on"), run.writing():
            pass


def test_of_trainers_that_race_exactly_one_proceeds_and_the_others_are_refused(run: StoredRun) -> None:
    for _ in range(RACES):
        gate_out, gate_into = os.pipe()

        def race(say: Callable[[bytes], None], gate: int = gate_out) -> None:
            os.read(gate, 1)
            train(run, say)

        with (
            another_process(race) as (_, one),
            another_process(race) as (_, other),
            another_process(race) as (_, third),
        ):
            os.write(gate_into, b"goo")
            said = sorted([one(), other(), third()])
        assert [words.split(b":")[0] for words in said] == [b"refused", b"refused", b"writing"]
        os.close(gate_out)
        os.close(gate_into)


def test_a_holder_that_has_only_just_begun_is_named(run: StoredRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def slowly(say: Callable[[bytes], None]) -> None:
        hostname = socket.gethostname()

        def gethostname() -> str:
            say(b"locked")
            time.sleep(0.2)
            return hostname

        monkeypatch.setattr(socket, "gethostname", gethostname)
        train(run, say)

    with another_process(slowly) as (holder, hears):
        assert hears() == b"locked"
        with pytest.raises(StorageError, match=rf"by process {holder} on"), run.writing():
            pytest.fail("two writers")


def test_asking_whether_a_run_is_held_refuses_no_writer(run: StoredRun, monkeypatch: pytest.MonkeyPatch) -> None:
    with run.writing():
        pass

    def ask(say: Callable[[bytes], None]) -> None:
        flock = storage.runs.fcntl.flock

        def slow_flock(*args: Any) -> None:
            flock(*args)
            say(b"asking")
            time.sleep(0.2)

        monkeypatch.setattr(storage.runs.fcntl, "flock", slow_flock)
        run.is_held()

    with another_process(ask) as (_, hears):
        assert hears() == b"asking"
        with run.writing():
            assert run.is_held()


# ---------------------------------------------------------------- runs in MLflow


def point_count(run: StoredRun) -> dict[str, int]:
    client = run.tracking.client
    return {name: len(client.get_metric_history(run.run_id, name)) for name in client.get_run(run.run_id).data.metrics}


def test_a_created_run_has_a_first_checkpoint_parameters_and_tags(
    home: Path, tiny: TrainConfig, same: Callable[[object, object], bool]
) -> None:
    run = create_run(tiny, NAMES, "mine", {"dqn.preset": "tutorial"})
    unit = run.newest_checkpoint()
    assert (unit.kind, unit.cycle, unit.inputs) == ("checkpoint", 0, {})
    assert unit.directory.is_relative_to(home / "artifacts" / "Breakout" / run.run_id)
    assert same(run.checkpoint(unit), first_checkpoint(tiny, NAMES))
    assert run.facts(unit) == Facts(tiny, tuple(NAMES), Counters())
    stored = run.tracking.client.get_run(run.run_id)
    assert stored.data.params["lanes"] == "3"
    assert stored.data.tags["dqn.preset"] == "tutorial"
    assert (stored.info.run_name, stored.info.status, run.name) == ("mine", "RUNNING", "mine")
    assert not run.is_held()
    assert list((home / "staging" / run.run_id).iterdir()) == []


def test_the_same_configuration_makes_the_same_first_checkpoint(home: Path, tiny: TrainConfig) -> None:
    other = tiny.model_copy(update={"seed": 8})
    digests = [create_run(config, NAMES, None, {}).newest_checkpoint().digest for config in (tiny, tiny, other)]
    assert digests[0] == digests[1] != digests[2]


def test_an_open_run_is_the_one_created(home: Path, tiny: TrainConfig) -> None:
    run = create_run(tiny, NAMES, None, {})
    assert open_run(run.run_id) == run
    storage.runs._tracking.cache_clear()
    storage.runs._stored_run.cache_clear()
    again = open_run(run.run_id)
    assert (again.name, again.artifacts, again.settings) == (run.name, run.artifacts, run.settings)
    assert again.newest_checkpoint() == run.newest_checkpoint()


def test_the_store_is_opened_once_in_a_process(home: Path) -> None:
    assert open_tracking() is open_tracking()


def test_publishing_a_unit_again_doubles_and_drops_nothing(home: Path, tiny: TrainConfig) -> None:
    run = create_run(tiny, NAMES, None, {})
    for cycle in (1, 2):
        commit(run, "targets", cycle)
    for _ in range(3):
        run.publish(run.unit("targets", 1))
        run.publish(run.unit("targets", 2))
    assert point_count(run) == {"counter/states": 2, "loss/mean": 2}


def test_a_unit_made_again_after_a_kill_before_publishing_is_published_once(home: Path, tiny: TrainConfig) -> None:
    run = create_run(tiny, NAMES, None, {})
    commit(run, "targets", 1)
    unit = run.made("targets", 1, {})
    assert unit is not None
    run.publish(unit)
    assert point_count(run) == {"counter/states": 1, "loss/mean": 1}


def test_a_unit_made_again_after_damage_publishes_no_point_twice(home: Path, tiny: TrainConfig) -> None:
    run = create_run(tiny, NAMES, None, {})
    first = commit(run, "targets", 1)
    run.publish(first)
    damage(first)
    assert run.made("targets", 1, {}) is None
    time.sleep(0.002)  # it is made again at another time
    again = commit(run, "targets", 1)
    assert again.created_ms > first.created_ms
    run.publish(again)
    assert point_count(run) == {"counter/states": 1, "loss/mean": 1}


def test_a_run_is_picked_up_at_its_newest_whole_checkpoint_published_once_and_pruned(
    home: Path, small_config: TrainConfig, tiny: TrainConfig, make_checkpoint: Callable[..., Checkpoint]
) -> None:
    run = create_run(tiny, NAMES, None, {})
    for cycle in range(1, 7):
        commit(run, "targets", cycle)
        with run.commit("checkpoint", cycle, {}) as draft:
            write_checkpoint(draft.directory, make_checkpoint())
            draft.metrics.append(Metric("counter/cycles", 10 * cycle, cycle))
    (run.directory("checkpoint", 6) / "weights.safetensors").write_bytes(b"damaged")
    for _ in range(2):
        assert run.pick_up() == run.unit("checkpoint", 5)
    assert point_count(run) == {"counter/cycles": 1}
    assert small_config.keep_cycles == 3
    assert cycles_in(run.directory("checkpoint")) == [6, 5, 4, 3]  # the broken one will be made again
    assert cycles_in(run.directory("targets")) == [6, 5, 4, 3]


def test_every_run_is_listed_newest_first_with_what_it_reached(home: Path, tiny: TrainConfig) -> None:
    first = create_run(tiny, NAMES, "first", {"dqn.preset": "tutorial"})
    create_run(tiny, NAMES, "second", {})
    with first.commit("checkpoint", 1, {}) as draft:
        draft.metrics += [Metric("counter/states", 60, 60), Metric("score/mean_100", 60, 1.5)]
    first.publish(first.unit("checkpoint", 1))
    first.tracking.set_status(first.run_id, "FINISHED")
    rows = list_runs()
    assert [row["name"] for row in rows] == ["second", "first"]
    row = rows[1]
    assert (row["id"], row["game"], row["preset"]) == (first.run_id, tiny.game, "tutorial")
    assert (row["status"], row["states"], row["score"]) == ("finished", 60, 1.5)
    assert row["started"] == time.strftime("%Y-%m-%d %H:%M", time.localtime(_started(first)))
    assert (rows[0]["states"], rows[0]["score"], rows[0]["preset"]) == (0, None, "")


def _started(run: StoredRun) -> float:
    return float(run.tracking.client.get_run(run.run_id).info.start_time / 1000)


def test_no_run_is_listed_where_there_are_none(home: Path) -> None:
    assert list_runs() == []


def test_a_run_whose_writer_died_is_listed_and_marked_as_killed(home: Path, tiny: TrainConfig) -> None:
    dead, alive = create_run(tiny, NAMES, "dead", {}), create_run(tiny, NAMES, "alive", {})
    with another_process(lambda say: train(dead, say)) as (_, hears):
        hears()
    with another_process(lambda say: train(alive, say)) as (_, hears):
        hears()
        assert {row["name"]: row["status"] for row in list_runs()} == {"dead": "killed", "alive": "running"}
        statuses = {run.info.run_name: run.info.status for run in open_tracking().runs()}
        assert statuses == {"dead": "KILLED", "alive": "RUNNING"}


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED"])
def test_a_run_that_is_over_keeps_its_status(home: Path, tiny: TrainConfig, status: str) -> None:
    run = create_run(tiny, NAMES, None, {})
    run.tracking.set_status(run.run_id, status)
    assert [row["status"] for row in list_runs()] == [status.lower()]
    assert run.tracking.client.get_run(run.run_id).info.status == status


def test_a_home_that_cannot_be_used_is_told_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: TrainConfig
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("DQN_HOME", str(tmp_path / "file" / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(OSError, match=r"file/home"):
        create_run(tiny, NAMES, None, {})
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_checkpoints_come_back_through_their_run(
    run: StoredRun, make_checkpoint: Callable[..., Checkpoint], same: Callable[[object, object], bool]
) -> None:
    with run.commit("checkpoint", 3, {}) as draft:
        write_checkpoint(draft.directory, make_checkpoint())
    unit = run.newest_checkpoint()
    assert same(run.checkpoint(unit), make_checkpoint())
    assert run.facts(unit) == make_checkpoint().facts
    assert torch.is_tensor(run.checkpoint(unit).weights["dense.weight"])
    assert make_config("tutorial", {"lanes": 3}).lanes == run.facts(unit).config.lanes
