"""Trainings in child processes which a test can kill, or make fail, at any instant, and the outcome of each."""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import multiprocessing.forkserver
import os
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trainer
from trainer import Fault

from storage.units.unit import CHECKPOINT, Unit, open_unit

CYCLES = 2
CHILD_SECONDS = 250  # time limit of a child, below the time limit of a test
NO_FAULT = Fault(at=0)
HERE = Path(__file__).parent


@cache
def fork_server() -> Any:
    """The server which forks the children, with the library of `faults.c` in LD_PRELOAD."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["preload"])
    library = Path(tempfile.mkdtemp()) / "faults.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, HERE / "faults.c", "-ldl", "-lpthread"], check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LD_PRELOAD", str(library))
        patch.setenv("PYTHONPATH", f"{HERE}:{HERE.parent.parent}")
        multiprocessing.forkserver.ensure_running()
    return context


@dataclass
class Child:
    """A child process, and the pipe on which it reports its phases and, at its end, its number of operations."""

    process: Any
    pipe: Any

    def join(self) -> int:
        """Wait for the end of the process and return its exit code, which is negative for a signal."""
        self.process.join(CHILD_SECONDS)
        assert self.process.exitcode is not None, f"the child did not end within {CHILD_SECONDS} seconds"
        return int(self.process.exitcode)

    def messages(self) -> list[Any]:
        """All messages until the end of the process that were not read yet."""
        received = []
        with contextlib.suppress(EOFError):
            while True:
                received.append(self.pipe.recv())
        return received

    def kill_in(self, phase: int, seconds: float) -> str:
        """Send SIGKILL `seconds` after the start of phase number `phase`.

        Returns the kind of the phase in which the process died.
        """
        last = "start"
        with contextlib.suppress(EOFError):
            for _ in range(phase + 1):
                last = self.pipe.recv()
            time.sleep(seconds)
        self.kill()
        return phase_kind([last, *self.messages()][-1])

    def kill(self) -> None:
        """Send SIGKILL and wait for the end of the process."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGKILL)
        self.join()


def phase_kind(message: object) -> str:
    """The kind of phase that a message announces, or "the end" for the last message, a number of operations."""
    return message.split()[0] if isinstance(message, str) else "the end"


def start(target: str, *arguments: Any) -> Child:
    """Start a child which calls the function `target` of `trainer.py`."""
    receiving, sending = fork_server().Pipe(duplex=False)
    process = fork_server().Process(target=_main, args=(target, sending, *arguments))
    process.start()
    sending.close()
    return Child(process, receiving)


def _main(target: str, pipe: Any, *arguments: Any) -> None:
    faulthandler.dump_traceback_later(CHILD_SECONDS - 10, exit=True)
    getattr(trainer, target)(*arguments, pipe.send)


@dataclass(frozen=True)
class Outcome:
    """Everything that a finished run stored, except for clock times."""

    digest: str
    metrics: frozenset[tuple[str, int, float]]
    duplicates: int  # metrics with more than one point at a step
    status: str
    files: frozenset[str]


@dataclass
class CrashRun:
    """A run in a home of its own, which a test can reset to its template and train in a child process."""

    home: Path
    template: Path
    run_id: str
    cycles: int = CYCLES  # the cycle after which the run ends
    evaluates: bool = False  # whether an evaluation follows the last cycle

    def reset(self) -> None:
        """Replace the home with a copy of the template."""
        shutil.rmtree(self.home, ignore_errors=True)
        shutil.copytree(self.template, self.home)

    def start(self, fault: Fault = NO_FAULT, cycles: int | None = None) -> Child:
        """Start or resume the run in a child."""
        return start("train", str(self.home), self.run_id, cycles or self.cycles, self.evaluates, fault)

    def finish(self, cycles: int | None = None) -> Outcome:
        """Resume the run and train it to its end.

        Asserts that no committed unit is made again.
        """
        committed = {f"commit {unit.kind}-{unit.cycle:05d}" for unit in self.units()}
        assert not committed & set(self._train_to_end(cycles))
        return self.outcome()

    def finish_after_damage(self) -> Outcome:
        """Resume the run and train it to its end; units that are damaged may be made again."""
        self._train_to_end(None)
        return self.outcome()

    def _train_to_end(self, cycles: int | None) -> list[Any]:
        child = self.start(cycles=cycles)
        messages = child.messages()
        assert child.join() == 0, messages
        return messages

    def units(self) -> list[Unit]:
        """All committed units of the home; raises StorageError if one of them is not whole."""
        paths = [*self.home.glob("replay/*/*/[0-9]*"), *self.home.glob("artifacts/*/*/artifacts/*/[0-9]*")]
        return [unit for unit in map(open_unit, paths) if unit]

    def outcome(self) -> Outcome:
        """The outcome of the finished run."""
        digest = max((unit.cycle, unit.digest) for unit in self.units() if unit.kind == CHECKPOINT)[1]
        with contextlib.closing(sqlite3.connect(self.home / "mlflow.db")) as database:
            rows = database.execute("select key, step, value from metrics where key not like 'speed/%'").fetchall()
            duplicates = database.execute("select key from metrics group by key, step having count(*) > 1").fetchall()
            (status,) = database.execute("select status from runs").fetchone()
        files = {str(path.relative_to(self.home)) for path in self.home.rglob("*") if path.is_file()}
        files = {name for name in files if not name.startswith("mlflow.db")}
        return Outcome(digest, frozenset(rows), len(duplicates), status, frozenset(files))

    def phases(self) -> tuple[list[str], list[float], int]:
        """Train without faults.

        Returns the phases, the seconds of each, and the number of operations on files.
        """
        self.reset()
        child, messages, times = self.start(), [], []
        with contextlib.suppress(EOFError):
            while True:
                messages.append(child.pipe.recv())
                times.append(time.monotonic())
        assert child.join() == 0, messages
        return messages[:-1], [later - earlier for earlier, later in pairwise(times)], messages[-1]


@cache
def empty_store() -> Path:
    """An MLflow store without runs, which each run gets a copy of, because creating its tables takes seconds."""
    home = Path(tempfile.mkdtemp())
    child = start("create_store", str(home))
    assert child.join() == 0
    return home / "mlflow.db"


def build(root: Path, **changes: int) -> CrashRun:
    """Create a run with `changes` to the small configuration, before its first cycle."""
    home, template = root / "home", root / "template"
    home.mkdir(parents=True)
    shutil.copy(empty_store(), home / "mlflow.db")
    child = start("create", str(home), changes)
    assert child.join() == 0
    shutil.copytree(home, template)
    return CrashRun(home, template, child.messages()[0])


def snapshot(run: CrashRun, name: str, **changes: Any) -> CrashRun:
    """The same run with its present home as the template."""
    template = run.template.with_name(name)
    shutil.copytree(run.home, template)
    return replace(run, template=template, **changes)


def with_first_cycle(run: CrashRun) -> CrashRun:
    """The same run after its first cycle: one whole cycle is left, from play to pruning."""
    run.reset()
    assert run.start(cycles=1).join() == 0
    return snapshot(run, "second-cycle")


@contextlib.contextmanager
def small_disk(run: CrashRun, mebibytes: float) -> Iterator[None]:
    """Move the home to a new file system of `mebibytes` for the time of the block."""
    run.reset()
    moved = run.home.with_name("moved")
    shutil.rmtree(moved, ignore_errors=True)
    shutil.move(run.home, moved)
    run.home.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={round(1024 * mebibytes)}k", "tmpfs", str(run.home)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small file system")
    try:
        shutil.copytree(moved, run.home, dirs_exist_ok=True)
        yield
    finally:
        subprocess.run(["umount", str(run.home)], check=True)
        run.home.rmdir()


def enlarge_disk(run: CrashRun) -> None:
    """Enlarge the file system of `small_disk`, so that the run has space again."""
    subprocess.run(["mount", "-o", "remount,size=500m", str(run.home)], check=True)


def sample_operations(count: int, purpose: int) -> list[int]:
    """Operations (from 1 to `count`) to test: a uniform sample of CRASH_OPERATIONS of them, or all if that is 0.

    `purpose` is the seed, so that different tests sample different operations.
    """
    size = int(os.environ.get("CRASH_OPERATIONS", "1")) or count
    operations = np.arange(1, count + 1)
    return sorted(np.random.default_rng(purpose).choice(operations, min(size, count), replace=False).tolist())
