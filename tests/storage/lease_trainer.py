"""Trainers of one run with homes of their own, each in a process that this program forks when a test requests it.

The processes cannot be forked from the tests, because threads of the S3 client do not survive a fork. Requests are
lines of JSON on the standard input; each is a `Trainer`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import mlflow.store.db.utils
from small_run import commit

import storage.lease
import storage.tracking
import storage.units.local_store
import storage.units.open_store
import storage.units.store
from storage.errors import StorageError
from storage.formats import checkpoint  # noqa: F401 - it imports torch, which takes seconds
from storage.publication import publish
from storage.run_tags import WRITER
from storage.runs import StoredRun, open_run
from storage.units.unit import CHECKPOINT

BUSY = threading.RLock()  # the main thread has it, unless it sleeps between two cycles


@dataclass(frozen=True)
class Trainer:
    """A trainer on a machine with a wrong clock, which commits a checkpoint for each cycle until it is killed."""

    run_id: str
    machine: str
    hours: float  # error of the clock
    instant: str  # at which it stops itself, as by SIGSTOP; a key of INSTANTS
    lease_seconds: float
    renewal_seconds: float
    messages: str  # file for its process id, "writing", and the error with which it ends
    log: str  # file with a line for each commit: its cycle and the process
    environment: dict[str, str]

    def main(self) -> None:
        signal.alarm(120)
        BUSY.acquire()
        os.environ.update(self.environment)
        self._set_machine()
        with Path(self.messages).open("a", buffering=1) as messages:
            messages.write(f"{os.getpid()}\n")
            INSTANTS[self.instant]()
            run = open_run(self.run_id)
            try:
                with run.writing():
                    messages.write("writing\n")
                    self._train(run)
            except (OSError, StorageError) as error:
                messages.write(f"{type(error).__name__}: {error}\n")

    def _set_machine(self) -> None:
        storage.lease.LEASE_SECONDS, storage.lease.RENEWAL_SECONDS = self.lease_seconds, self.renewal_seconds
        storage.lease._machine = lambda: self.machine
        seconds = int(self.hours * 3600)
        real_time, real_time_ns, real_strftime = time.time, time.time_ns, time.strftime
        time.time = lambda: real_time() + seconds
        time.time_ns = lambda: real_time_ns() + seconds * 10**9
        time.strftime = lambda form, at=None: real_strftime(form, at or time.localtime(time.time()))

    def _train(self, run: StoredRun) -> None:
        newest = run.cycles(CHECKPOINT)[0]
        publish(run, run.unit(CHECKPOINT, newest))
        while True:
            newest += 1
            unit = commit(run, CHECKPOINT, newest, data=str(os.getpid()).encode())
            with Path(self.log).open("a") as log:
                log.write(f"{newest} {os.getpid()}\n")
            publish(run, unit)
            BUSY.release()
            time.sleep(0.02)
            BUSY.acquire()


def stop_in(module: Any, name: str, condition: Callable[..., bool] = lambda *_, **__: True) -> None:
    """Stop this process when it calls a function for the first time for which `condition` holds."""
    function, pending = getattr(module, name), [True]

    def stopping(*arguments: Any, **options: Any) -> Any:
        if pending and condition(*arguments, **options):
            pending.clear()
            with BUSY:  # a stopped process must not hold a lock of MLflow's database
                signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)  # `os.kill` stops it later
        return function(*arguments, **options)

    setattr(module, name, stopping)


INSTANTS: dict[str, Callable[[], None]] = {
    "": lambda: None,
    "before it names itself in MLflow": lambda: stop_in(
        storage.tracking.Tracking, "set_tags", lambda _, run_id, tags: WRITER in tags
    ),
    "before it writes a unit": lambda: stop_in(storage.units.store, "describe"),
    "before it publishes metrics": lambda: stop_in(
        storage.tracking.Tracking, "publish", lambda _, run_id, unit: unit.cycle == 2
    ),
    "in a renewal": lambda: stop_in(storage.lease, "_text", lambda writer: writer.renewals > 0),
    "within the lock": lambda: stop_in(storage.units.local_store, "move_to_trash"),
}


if __name__ == "__main__":
    os.fsync = os.fstat
    # MLflow reads all revisions of its schema whenever it opens a store.
    mlflow.store.db.utils._get_latest_schema_revision = cache(mlflow.store.db.utils._get_latest_schema_revision)
    mlflow.store.db.utils._get_latest_schema_revision()
    print("ready", flush=True)
    for request in sys.stdin:
        if os.fork() == 0:
            try:
                Trainer(**json.loads(request)).main()
            finally:
                os._exit(0)
