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
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trainer
from trainer import Fault

from storage.units import Unit, open_unit

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
        return str([last, *self.said()][-1])

    def kill(self) -> None:
        """SIGKILL it."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGKILL)
        self.join()


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

    def reset(self) -> None:
        """Go back to the run as it was when it was ready."""
        shutil.rmtree(self.home, ignore_errors=True)
        shutil.copytree(self.template, self.home)

    def start(self, fault: Fault = NOTHING) -> Child:
        """Let it go on in a child."""
        return start("train", str(self.home), self.run_id, CYCLES, fault)

    def finish(self) -> Outcome:
        """Resume the run, let it come to its end, and see what came of it."""
        child = self.start()
        assert child.join() == 0, child.said()
        return self.outcome()

    def units(self) -> list[Unit]:
        """Every unit there is: each is whole, or this raises."""
        places = [*self.home.glob("replay/*/*/[0-9]*"), *self.home.glob("artifacts/*/*/artifacts/checkpoints/[0-9]*")]
        return [unit for unit in map(open_unit, places) if unit]

    def outcome(self) -> Outcome:
        """What the finished run left."""
        digest = max((unit.cycle, unit.digest) for unit in self.units() if unit.kind == "checkpoint")[1]
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
        assert child.join() == 0
        return told[:-1], [later - sooner for sooner, later in pairwise(times)], told[-1]


def build(root: Path, seed: int = 0, lanes: int = 2) -> Laboratory:
    """A run that was created and has done nothing yet."""
    home, template = root / "home", root / "template"
    home.mkdir(parents=True)
    child = start("create", str(home), seed, lanes)
    assert child.join() == 0
    shutil.copytree(home, template)
    return Laboratory(home, template, child.said()[0])


def after_first_cycle(laboratory: Laboratory) -> Laboratory:
    """The same run with one cycle done: what is left is one whole cycle, from its play to its pruning."""
    laboratory.reset()
    assert start("train", str(laboratory.home), laboratory.run_id, 1, NOTHING).join() == 0
    template = laboratory.template.with_name("second-cycle")
    shutil.copytree(laboratory.home, template)
    return Laboratory(laboratory.home, template, laboratory.run_id)


@contextlib.contextmanager
def small_disk(laboratory: Laboratory, mebibytes: int) -> Iterator[None]:
    """The run on a file system of its own, of that size while the block begins."""
    laboratory.reset()
    moved = laboratory.home.with_name("moved")
    shutil.rmtree(moved, ignore_errors=True)
    shutil.move(laboratory.home, moved)
    laboratory.home.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(laboratory.home)]
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
