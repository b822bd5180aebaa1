"""Writers with different homes and one MLflow store, as two machines have them."""

from __future__ import annotations

import fcntl
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import count, groupby
from pathlib import Path
from typing import Any

import pytest
from lease_trainer import INSTANTS, Trainer
from s3_server import BUCKET, ERROR, PASS, S3Server
from small_run import commit

import storage.lease
import storage.runs
from dqn.config import TrainConfig
from storage.errors import StorageError
from storage.lease import RECORD, Writer, recorded_writer
from storage.run_list import list_runs
from storage.run_tags import WRITER
from storage.runs import StoredRun, create_run, open_run, open_tracking
from storage.units.local_store import LocalUnitStore
from storage.units.unit import CHECKPOINT, EVALUATION, TARGETS

RACES = int(os.environ.get("RACES", "1"))
LEASE_SECONDS, RENEWAL_SECONDS = 3.0, 0.3

Figure = Callable[[int, str, str], None]


@dataclass
class Machines:
    """Machines that share the MLflow store and the artifacts of one run; each has a home of its own."""

    root: Path
    run_id: str
    server: subprocess.Popen[str]

    @property
    def log(self) -> Path:
        """A line for each commit: its cycle and the process."""
        return self.root / "log"

    def open(self, home: str) -> StoredRun:
        """The run as this process finds it with that home."""
        os.environ["DQN_HOME"] = str(self.root / home)
        storage.runs._stored_run.cache_clear()
        return open_run(self.run_id)

    @contextmanager
    def training(self, home: str, hours: float = 0, instant: str = "") -> Iterator[tuple[int, Callable[[], str]]]:
        """Train in a process that is killed at the end of the block.

        The machine is the part of `home` before a hyphen, its clock is wrong by `hours`, and the process stops itself
        at `instant`. Yields its id and a function that waits for its next message.
        """
        messages = self.root / uuid.uuid4().hex
        environment = {name: value for name, value in os.environ.items() if name.startswith(("AWS_", "MLFLOW_"))}
        environment["DQN_HOME"] = str(self.root / home)
        trainer = Trainer(
            self.run_id,
            home.partition("-")[0],
            hours,
            instant,
            storage.lease.LEASE_SECONDS,
            storage.lease.RENEWAL_SECONDS,
            str(messages),
            str(self.log),
            environment,
        )
        assert self.server.stdin
        self.server.stdin.write(json.dumps(asdict(trainer)) + "\n")
        self.server.stdin.flush()
        lines = (line_of(messages, number) for number in count())
        process = int(next(lines))
        try:
            yield process, lambda: next(lines)
        finally:
            os.kill(process, signal.SIGKILL)

    def commits(self) -> list[tuple[int, int]]:
        """Cycle and process of every commit, in their order."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [(int(cycle), int(process)) for cycle, process in map(str.split, lines)]

    def wait_for_commits(self, process: int, count: int = 2) -> None:
        wait_until(lambda: sum(by == process for _, by in self.commits()) >= count)

    def stop(self, process: int) -> None:
        """Stop a process which holds neither the lock of MLflow's database nor that of the record."""
        lock = self.open("observer").artifacts / "writer"
        with closing(sqlite3.connect(self.root / "mlflow.db", timeout=60)) as database, ExitStack() as locked:
            if isinstance(lock, LocalUnitStore):
                locked.enter_context(lock._lock(fcntl.LOCK_EX))
            database.execute("BEGIN EXCLUSIVE")
            os.kill(process, signal.SIGSTOP)
            wait_until_stopped(process)

    def check(self) -> None:
        """Assert that each cycle was committed by one process, after the cycle before, and published once."""
        cycles = [cycle for cycle, _ in self.commits()]  # one may be missing, or late if its process was stopped
        run = self.open("observer")
        stored = sorted(run.cycles(CHECKPOINT))
        assert stored == list(range(len(stored)))
        assert len(cycles) == len(set(cycles)), "a cycle was committed twice"
        assert set(cycles) <= set(stored)
        makers = {cycle: int((run.unit(CHECKPOINT, cycle).directory / "data").read_bytes()) for cycle in stored[1:]}
        assert dict(self.commits()).items() <= makers.items()
        assert len(list(groupby(makers.values()))) == len(set(makers.values())), "a cycle was committed late"
        steps = Counter(point.step for point in run.tracking.history(self.run_id, "counter/states"))
        assert set(steps.values()) <= {1}, "a point was published twice"
        assert set(steps) >= {10 * cycle for cycle in stored[1:-1]}


def line_of(file: Path, number: int) -> str:
    """Line number `number` of a file, as soon as it is complete."""

    def lines() -> list[str]:
        return file.read_text().split("\n")[:-1] if file.exists() else []

    wait_until(lambda: len(lines()) > number)
    return lines()[number]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def server() -> Iterator[subprocess.Popen[str]]:
    """The program which forks the trainers."""
    command = [sys.executable, Path(__file__).with_name("lease_trainer.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout and server.stdout.readline() == "ready\n"
        yield server


@pytest.fixture(params=["files", "s3"])
def machines(
    request: pytest.FixtureRequest,
    server: subprocess.Popen[str],
    mlflow_database: Path,
    tmp_path: Path,
    tiny: TrainConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Machines]:
    """A run whose artifacts are in the home of the machine `first`, or on S3."""
    shutil.copy(mlflow_database, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setenv("DQN_HOME", str(tmp_path / "first"))
    monkeypatch.setattr(storage.lease, "LEASE_SECONDS", LEASE_SECONDS)
    monkeypatch.setattr(storage.lease, "RENEWAL_SECONDS", RENEWAL_SECONDS)
    if request.param == "s3":
        request.getfixturevalue("s3")
        open_tracking().client.create_experiment("Breakout", f"s3://{BUCKET}/{uuid.uuid4().hex}")
    run = create_run(tiny, ["NOOP", "FIRE"], "my-run", {})
    yield Machines(tmp_path, run.run_id, server)
    storage.runs._tracking.cache_clear()
    storage.runs._stored_run.cache_clear()


def only_files(function: Any) -> Any:
    return pytest.mark.parametrize("machines", ["files"], indirect=True)(function)


# ---------------------------------------------------------------- races


@pytest.mark.parametrize("end", ["killed", "stopped"])
def test_one_of_two_homes_trains_and_the_other_follows(machines: Machines, end: str, figure: Figure) -> None:
    """Two machines start to train at once, with clocks that differ by hours.

    One is refused. The other one is killed, or stopped for longer than its lease. A third one trains further when
    the lease has ended, and a stopped one cannot store anything when it continues.
    """
    draws = random.Random(f"{end}")
    for _ in range(RACES):
        with ExitStack() as racers:
            names = ["first", "second"]
            clocks = [draws.uniform(-9, 9) for _ in names]
            started = [racers.enter_context(machines.training(*racer)) for racer in zip(names, clocks, strict=True)]
            heard = [said() for _, said in started]
            assert sorted(words == "writing" for words in heard) == [False, True], heard
            winner = heard.index("writing")
            process, says = started[winner]
            refusal = heard[1 - winner]
            assert f"run my-run is being trained by process {process} on " in refusal
            assert f"lease ends {LEASE_SECONDS:.0f} seconds" in refusal
            machines.wait_for_commits(process)
            time.sleep(draws.uniform(0, 0.1))
            os.kill(process, signal.SIGKILL) if end == "killed" else machines.stop(process)
            began = time.monotonic()
            with machines.training(names[1 - winner], draws.uniform(-9, 9)) as (successor, successor_says):
                assert successor_says() == "writing"
                assert time.monotonic() - began > LEASE_SECONDS - RENEWAL_SECONDS - 0.1
                machines.wait_for_commits(successor)
                if end == "stopped":
                    os.kill(process, signal.SIGCONT)
                    assert f"run my-run is being trained by process {successor} on " in says()
                    machines.wait_for_commits(successor, 5)
        machines.check()
    kind = "S3" if not isinstance(machines.open("first").artifacts, LocalUnitStore) else "files"
    test = (
        f"{RACES} races of two homes over one MLflow store with artifacts on {kind}; the writer is {end}, clocks differ"
    )
    figure(10, test, f"{RACES} times one trains, the other names it and follows after the lease; nothing is doubled")


STOPS = [
    (machines, instant)
    for number, instant in enumerate(instant for instant in INSTANTS if instant not in ("", "within the lock"))
    for place, machines in enumerate(["files", "s3"])
    if RACES > 1 or number % 2 == place  # a sample
]


@pytest.mark.parametrize(("machines", "instant"), STOPS, indirect=["machines"])
def test_writer_stopped_at_an_instant_stores_nothing_later(machines: Machines, instant: str) -> None:
    with machines.training("first", instant=instant) as (process, says):
        if "MLflow" not in instant:
            assert says() == "writing"
        wait_until_stopped(process)
        with machines.training("second") as (successor, successor_says):
            assert successor_says() == "writing"
            machines.wait_for_commits(successor)
            before = len(machines.commits())
            os.kill(process, signal.SIGCONT)
            assert f"run my-run is being trained by process {successor} on " in says()
            machines.wait_for_commits(successor, before + 3)
    machines.check()
    tag = machines.open("first").tracking.get_run(machines.run_id).data.tags[WRITER]
    assert f"process {successor} on" in tag


def wait_until_stopped(process: int) -> None:
    status = Path(f"/proc/{process}/stat")
    wait_until(lambda: status.read_text().rpartition(")")[2].split()[0] == "T")


@only_files
def test_no_writer_follows_during_the_rename_of_a_commit(machines: Machines) -> None:
    """A process that is stopped within the lock finishes its commit before another one becomes the writer."""
    with machines.training("first", instant="within the lock") as (process, says):
        assert says() == "writing"
        wait_until_stopped(process)
        with machines.training("second") as (successor, successor_says):
            time.sleep(2 * LEASE_SECONDS)
            assert machines.commits() == []
            os.kill(process, signal.SIGCONT)
            if (said := successor_says()) == "writing":
                assert f"by process {successor} on " in says()
                machines.wait_for_commits(successor)
            else:  # the first process has renewed its lease before the other one has got the lock
                assert f"by process {process} on " in said
                machines.wait_for_commits(process)
    machines.check()


# ---------------------------------------------------------------- one machine


def test_other_home_resumes_at_once_after_a_kill(machines: Machines, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dead process of the same machine is detected, so the lease is not waited for."""
    monkeypatch.setattr(storage.lease, "LEASE_SECONDS", 600.0)
    with machines.training("one-a") as (process, says):
        assert says() == "writing"
        os.kill(process, signal.SIGKILL)  # a zombie from now on
        with machines.training("one-b") as (_, successor_says):
            assert successor_says() == "writing"
        with machines.training("one-c") as (_, successor_says):
            assert successor_says() == "writing"


def test_released_run_has_another_writer_at_once(machines: Machines) -> None:
    run = machines.open("first")
    for _ in range(2):
        with run.writing():
            assert run.is_held()
        assert not run.is_held()
    with machines.training("elsewhere") as (process, says):
        assert says() == "writing"
        assert run.is_held()
        found = recorded_writer(run.artifacts / "writer")
        assert found and found.process == process and found.number == 4  # create_run was the first writer


@pytest.mark.parametrize(
    ("changes", "out_of_date"),
    [
        ({}, False),
        ({"released": True}, True),
        ({"machine": "another"}, False),
        ({"machine": "another", "process": 2**22 + 1}, False),
        ({"process": 2**22 + 1}, True),
        ({"started": 1}, True),
    ],
)
def test_record_is_out_of_date_if_its_process_has_ended(changes: dict[str, Any], out_of_date: bool) -> None:
    here = Writer(1, os.getpid(), storage.lease._start_of(os.getpid()), storage.lease._machine(), "host", "now")
    assert replace(here, **changes).is_out_of_date() == out_of_date


def test_process_without_proc_is_never_out_of_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage.lease, "_machine", lambda: "")
    assert not Writer(1, 2**22 + 1, 0, "", "host", "now").is_out_of_date()


# ---------------------------------------------------------------- other processes beside the writer


def test_worker_commits_for_the_trainer_of_another_process(machines: Machines) -> None:
    run = machines.open("worker")
    with machines.training("trainer") as (_, says):
        assert says() == "writing"
        assert commit(run, TARGETS, 1)
        assert commit(run, EVALUATION, 1)


def test_worker_of_an_earlier_trainer_cannot_commit(machines: Machines) -> None:
    run = machines.open("worker")
    with machines.training("one") as (_, says):
        assert says() == "writing"
        process = recorded_writer(run.artifacts / "writer").process

        def commit_while_the_trainer_is_replaced() -> None:
            with run.commit(CHECKPOINT, 7, {}):
                os.kill(process, signal.SIGKILL)
                with machines.training("one") as (_, successor_says):
                    assert successor_says() == "writing"

        with pytest.raises(StorageError, match="run my-run is being trained by process"):
            commit_while_the_trainer_is_replaced()
    assert 7 not in run.cycles(CHECKPOINT)


@only_files
def test_run_that_another_home_trains_is_not_marked_killed(machines: Machines) -> None:
    run = machines.open("first")
    assert run.was_written_here()
    with machines.training("second") as (_, says):
        assert says() == "writing"
        assert [row.status for row in list_runs()] == ["running"]


# ---------------------------------------------------------------- damage and outages


def test_torn_record_counts_as_none_and_numbers_grow(machines: Machines) -> None:
    run = machines.open("first")
    store = run.artifacts / "writer"
    store.write_record(RECORD, b'{"number": 1', store.read_record(RECORD)[1])
    with run.writing():
        found = recorded_writer(store)
        assert found is not None and found.number == 2  # MLflow has the number of the writer before
        store.write_record(RECORD, b"", store.read_record(RECORD)[1])
        commit(run, TARGETS, 1)
        time.sleep(3 * RENEWAL_SECONDS)
        found = recorded_writer(store)
        assert found is not None and found.number == 2
    assert not run.is_held()


def test_record_is_replaced_only_if_its_version_is_given(machines: Machines) -> None:
    store = machines.open("first").artifacts / "other"
    assert store.read_record("a") == (b"", "")
    first = store.write_record("a", b"1", "")
    assert first and store.read_record("a") == (b"1", first)
    assert store.write_record("a", b"2", "") == ""
    second = store.write_record("a", b"2", first)
    assert second not in ("", first)
    assert store.write_record("a", b"3", first) == ""
    assert store.read_record("a") == (b"2", second)


@pytest.mark.parametrize("machines", ["s3"], indirect=True)
def test_outage_that_is_shorter_than_the_lease_does_no_harm(machines: Machines, s3: S3Server) -> None:
    with machines.training("first") as (process, says):
        assert says() == "writing"
        machines.wait_for_commits(process)
        s3.judge = lambda method, path: ERROR if method == "PUT" and "/writer/" in path else PASS
        time.sleep(LEASE_SECONDS / 2)
        s3.judge = lambda method, path: PASS
        machines.wait_for_commits(process, 4)
        with machines.training("second") as (_, refused):
            assert f"is being trained by process {process} on " in refused()
    machines.check()
