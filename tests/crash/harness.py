"""Trainings in child processes that can be killed, or fail, at any instant, and what comes of them."""

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
CHILD_SECONDS = 250  # the longest that any child may take, below the limit of a test
NOTHING = Fault(at=0)
HERE = Path(__file__).parent


@cache
def server() -> Any:
    """The server that forks children, with the faults of `faults.c` preloaded."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["warmed"])
    library = Path(tempfile.mkdtemp()) / "faults.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, HERE / "faults.c", "-ldl", "-lpthread"], check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LD_PRELOAD", str(library))
        patch.setenv("PYTHONPATH", f"{HERE}:{HERE.parent.parent}")
        multiprocessing.forkserver.ensure_running()
    return context


@dataclass
class Child:
    """A child's process, and the pipe on which it tells things: phases, and its operations at the end."""

    process: Any
    pipe: Any

    def join(self) -> int:
        """Wait for its end; its exit code, negative for a signal."""
        self.process.join(CHILD_SECONDS)
        assert self.process.exitcode is not None, f"it did not end within {CHILD_SECONDS} seconds"
        return int(self.process.exitcode)

    def said(self) -> list[Any]:
        """All that it told until its end and was not read yet."""
        told = []
        with contextlib.suppress(EOFError):
            while True:
                told.append(self.pipe.recv())
        return told

    def kill_in(self, phase: int, seconds: float) -> str:
        """SIGKILL it so long after the beginning of its phase number `phase`; the phase in which it died."""
        last = "start"
        with contextlib.suppress(EOFError):
            for _ in range(phase + 1):
                last = self.pipe.recv()
            time.sleep(seconds)
        self.kill()
        return kind_of([last, *self.said()][-1])

    def kill(self) -> None:
        """SIGKILL it."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGKILL)
        self.join()


def kind_of(phase: object) -> str:
    """What a phase is, by what was told when it began."""
    return phase.split()[0] if isinstance(phase, str) else "the end"


def start(target: str, *arguments: Any) -> Child:
    """Start a child that does a function of `trainer.py`."""
    receiving, sending = server().Pipe(duplex=False)
    process = server().Process(target=_begin, args=(target, sending, *arguments))
    process.start()
    sending.close()
    return Child(process, receiving)


def _begin(target: str, pipe: Any, *arguments: Any) -> None:
    faulthandler.dump_traceback_later(CHILD_SECONDS - 10, exit=True)
    getattr(trainer, target)(*arguments, pipe.send)


@dataclass(frozen=True)
class Outcome:
    """All that a finished run left behind, but for clock times."""

    digest: str
    metrics: frozenset[tuple[str, int, float]]
    doubled: int  # metrics with more than one point at a step
    status: str
    files: frozenset[str]


@dataclass
class Laboratory:
    """One run, ready to go on, and what comes of it when nothing disturbs it."""

    home: Path
    template: Path
    run_id: str
    cycles: int = CYCLES  # where it ends
    evaluates: bool = False  # in the end

    def reset(self) -> None:
        """Go back to the run as it was when it was ready."""
        shutil.rmtree(self.home, ignore_errors=True)
        shutil.copytree(self.template, self.home)

    def start(self, fault: Fault = NOTHING, cycles: int | None = None) -> Child:
        """Let it go on in a child."""
        return start("train", str(self.home), self.run_id, cycles or self.cycles, self.evaluates, fault)

    def finish(self, cycles: int | None = None) -> Outcome:
        """Resume the run, let it come to its end without doing again what was done, and see what came of it."""
        there = {f"commit {unit.kind}-{unit.cycle:05d}" for unit in self.units()}
        told = self._told_until_the_end(cycles)
        assert not there & set(told), "what was committed is not made again"
        return self.outcome()

    def finish_anew(self) -> Outcome:
        """Resume the run, of which something was damaged, let it come to its end, and see what came of it."""
        self._told_until_the_end(None)
        return self.outcome()

    def _told_until_the_end(self, cycles: int | None) -> list[Any]:
        child = self.start(cycles=cycles)
        told = child.said()
        assert child.join() == 0, told
        return told

    def units(self) -> list[Unit]:
        """Every unit there is: each is whole, or this raises."""
        places = [*self.home.glob("replay/*/*/[0-9]*"), *self.home.glob("artifacts/*/*/artifacts/*/[0-9]*")]
        return [unit for unit in map(open_unit, places) if unit]

    def outcome(self) -> Outcome:
        """What the finished run left."""
        digest = max((unit.cycle, unit.digest) for unit in self.units() if unit.kind == CHECKPOINT)[1]
        with contextlib.closing(sqlite3.connect(self.home / "mlflow.db")) as store:
            rows = store.execute("select key, step, value from metrics where key not like 'speed/%'").fetchall()
            doubled = store.execute("select key from metrics group by key, step having count(*) > 1").fetchall()
            (status,) = store.execute("select status from runs").fetchone()
        files = {str(path.relative_to(self.home)) for path in self.home.rglob("*") if path.is_file()}
        files = {name for name in files if not name.startswith("mlflow.db")}
        return Outcome(digest, frozenset(rows), len(doubled), status, frozenset(files))

    def phases(self) -> tuple[list[str], list[float], int]:
        """The phases of an undisturbed run, the seconds each takes, and the operations on files in all."""
        self.reset()
        child, told, times = self.start(), [], []
        with contextlib.suppress(EOFError):
            while True:
                told.append(child.pipe.recv())
                times.append(time.monotonic())
        assert child.join() == 0, told
        return told[:-1], [later - sooner for sooner, later in pairwise(times)], told[-1]


def build(root: Path, **changes: int) -> Laboratory:
    """A run that was created, with `changes` to the small configuration, and has done nothing yet."""
    home, template = root / "home", root / "template"
    home.mkdir(parents=True)
    child = start("create", str(home), changes)
    assert child.join() == 0
    shutil.copytree(home, template)
    return Laboratory(home, template, child.said()[0])


def from_now_on(laboratory: Laboratory, name: str, **changes: Any) -> Laboratory:
    """The same run, ready to go on from where it is now."""
    template = laboratory.template.with_name(name)
    shutil.copytree(laboratory.home, template)
    return replace(laboratory, template=template, **changes)


def after_first_cycle(laboratory: Laboratory) -> Laboratory:
    """The same run with one cycle done: what is left is one whole cycle, from its play to its pruning."""
    laboratory.reset()
    assert laboratory.start(cycles=1).join() == 0
    return from_now_on(laboratory, "second-cycle")


@contextlib.contextmanager
def small_disk(laboratory: Laboratory, mebibytes: float) -> Iterator[None]:
    """The run on a file system of its own, of that size while the block begins."""
    laboratory.reset()
    moved = laboratory.home.with_name("moved")
    shutil.rmtree(moved, ignore_errors=True)
    shutil.move(laboratory.home, moved)
    laboratory.home.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={round(1024 * mebibytes)}k", "tmpfs", str(laboratory.home)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small disk can be mounted by root only")
    try:
        shutil.copytree(moved, laboratory.home, dirs_exist_ok=True)
        yield
    finally:
        subprocess.run(["umount", str(laboratory.home)], check=True)
        laboratory.home.rmdir()


def enlarge(laboratory: Laboratory) -> None:
    """Make room on the small disk."""
    subprocess.run(["mount", "-o", "remount,size=500m", str(laboratory.home)], check=True)


def chosen(operations: int, purpose: int) -> list[int]:
    """The operations to try: an even sample that differs by purpose, or every one (CRASH_OPERATIONS=0)."""
    count = int(os.environ.get("CRASH_OPERATIONS", "1")) or operations
    every = np.arange(1, operations + 1)
    return sorted(np.random.default_rng(purpose).choice(every, min(count, operations), replace=False).tolist())
