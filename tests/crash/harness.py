"""Trains on real Breakout in a child process that can be killed, or fail, at any instant.

Children are forked from a server that has everything imported and has computed nothing, so that one
costs a moment, and no thread of the tests is in it.
"""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import shutil
import signal
import sqlite3
import sys
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from prefect.logging import disable_run_logger

from dqn.environments import action_names
from flows.train import requested_config
from storage.runs import StoredRun, create_run, open_run
from storage.units import open_unit
from tasks.collect_episodes import collect_episodes
from tasks.optimize import optimize
from tasks.update_q_values import update_q_values

CYCLES = 2
CONFIG = {"lanes": 2, "replay_states": 16, "batch_size": 8, "max_epochs": 1, "threads": 1, "keep_cycles": 2}
STAGES = {"collect-episodes": collect_episodes, "update-q-values": update_q_values, "optimize": optimize}

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["flows.train", "dqn.environments"])  # what an import of this file costs


@dataclass(frozen=True)
class Fault:
    """What happens at the operation number `at` (from 1) on files of the home."""

    at: int
    error: int = 0  # an errno; 0 means SIGKILL
    forever: bool = False  # every later operation fails too, as on a full disk


@dataclass
class Child:
    """A training child: its process, and the pipe on which it tells the stage it begins."""

    process: Any
    stages: Any

    def join(self) -> int:
        """Wait for its end; its exit code, negative for a signal."""
        self.process.join(120)
        assert self.process.exitcode is not None, "a training hangs"
        return int(self.process.exitcode)

    def kill_in(self, stage: int, fraction: float, durations: list[float]) -> None:
        """SIGKILL it when `fraction` of the stage number `stage` is over, or later stages if that is past."""
        for _ in range(stage + 1):
            if not self.stages.poll(60):
                break
            with contextlib.suppress(EOFError):
                self.stages.recv()
        time.sleep(fraction * durations[stage])
        self.kill()

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGKILL)
        self.process.join(60)


def start(home: Path, run_id: str | None = None, fault: Fault | None = None, seed: int = 0) -> Child:
    """Start a child that trains the run to its last cycle; without an id it creates the run."""
    receiving, sending = _context.Pipe(duplex=False)
    process = _context.Process(target=_train, args=(str(home), run_id, fault, seed, sending))
    process.start()
    sending.close()
    return Child(process, receiving)


def _train(home: str, run_id: str | None, fault: Fault | None, seed: int, stages: Any) -> None:
    os.environ["DQN_HOME"] = home
    with disable_run_logger():
        if run_id is None:
            config = requested_config("fast", {**CONFIG, "seed": seed})
            create_run(config, action_names(config.game), "crash", {})
            return
        operations = _install(Path(home), fault) if fault else []
        run = open_run(run_id)
        try:
            _cycles(run, stages)
        except OSError as error:
            sys.exit(error.errno)
        finally:
            stages.send(len(operations))


def _cycles(run: StoredRun, stages: Any) -> None:
    """The cycles as flows.train runs them, without Prefect around them."""
    with run.writing():
        newest = run.pick_up()
        for cycle in range(newest.cycle + 1, CYCLES + 1):
            for name, stage in STAGES.items():
                stages.send(f"{name} {cycle}")
                stage.fn(run.run_id, cycle)
                assert stage.fn(run.run_id, cycle).kind, "every task is done twice, the second time for nothing"


def _install(home: Path, fault: Fault) -> list[str]:
    """Let `fault` happen at its operation; the list gets the name of every operation that began."""
    operations: list[str] = []
    tripped: list[str] = []

    def operation(name: str, path: object) -> None:
        where = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else ""
        if not where.startswith(str(home)) or "mlflow.db" in where or "/locks/" in where:
            return
        operations.append(f"{name} {where[len(str(home)) :]}")
        if len(operations) == fault.at or (tripped and fault.forever):
            if not fault.error:
                os.kill(os.getpid(), signal.SIGKILL)
            tripped.append(name)
            raise OSError(fault.error, os.strerror(fault.error), where)

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            operation("open", arguments[0])
        elif event in ("os.rename", "os.mkdir"):
            operation(event, arguments[0])
        elif event in ("os.remove", "os.rmdir") and not (fault.error and fault.forever):
            # A full disk lets files be removed.
            path = arguments[0]
            operation(event, path if Path(os.fsdecode(path)).is_absolute() else home / os.fsdecode(path))

    fsync = os.fsync

    def failing_fsync(descriptor: int) -> None:
        operation("fsync", Path(f"/proc/self/fd/{descriptor}").readlink())
        fsync(descriptor)

    os.fsync = failing_fsync
    sys.addaudithook(audit)
    return operations


@dataclass
class Laboratory:
    """One run, ready to begin, and what comes of it when nothing disturbs it."""

    home: Path
    template: Path
    run_id: str
    reference: Outcome
    durations: list[float]  # seconds of each stage
    operations: int  # on files of the home, from the first cycle to the last

    def reset(self) -> None:
        """Go back to the run as it was before its first cycle."""
        shutil.rmtree(self.home, ignore_errors=True)
        shutil.copytree(self.template, self.home)

    def finish(self) -> Outcome:
        """Resume the run, let it come to its end, and see what came of it."""
        assert start(self.home, self.run_id).join() == 0
        return outcome(self.home, self.run_id)

    def whole_units(self) -> int:
        """Open every unit there is: each is whole, or this raises."""
        places = [*self.home.glob("replay/*/*/[0-9]*"), *self.home.glob("artifacts/*/*/artifacts/checkpoints/[0-9]*")]
        return len([open_unit(place) for place in places])


@dataclass(frozen=True)
class Outcome:
    """All that a finished run left behind, but for clock times."""

    digest: str
    metrics: frozenset[tuple[str, int, float]]
    doubled: int  # metrics with more than one point at a step
    files: frozenset[str]


def outcome(home: Path, run_id: str) -> Outcome:
    """What the finished run left in `home`."""
    checkpoints = next(home.glob(f"artifacts/*/{run_id}/artifacts/checkpoints"))
    unit = open_unit(checkpoints / f"{CYCLES:05d}")
    assert unit is not None
    with contextlib.closing(sqlite3.connect(home / "mlflow.db")) as store:
        rows = store.execute("select key, step, value from metrics where key not like 'speed/%'").fetchall()
        doubled = store.execute("select key from metrics group by key, step having count(*) > 1").fetchall()
    files = {str(path.relative_to(home)) for path in home.rglob("*") if path.is_file() and "mlflow.db" not in path.name}
    return Outcome(unit.digest, frozenset(rows), len(doubled), frozenset(files))


def build(root: Path, seed: int = 0) -> Laboratory:
    """Create a run, keep a copy of it, and train it once undisturbed."""
    home, template = root / "home", root / "template"
    home.mkdir()
    assert start(home, seed=seed).join() == 0
    run_id = next(home.glob("artifacts/*/*")).name
    shutil.copytree(home, template)
    child = start(home, run_id, Fault(at=0, error=errno.EIO))
    times = []
    for _ in range(CYCLES * len(STAGES)):
        child.stages.recv()
        times.append(time.monotonic())
    operations = child.stages.recv()
    times.append(time.monotonic())
    assert child.join() == 0
    durations = [later - sooner for sooner, later in pairwise(times)]
    return Laboratory(home, template, run_id, outcome(home, run_id), durations, operations)
