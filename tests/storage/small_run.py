"""Small units of a run, and writers in other processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from dqn.metrics import Metric
from storage.errors import StorageError
from storage.runs import StoredRun
from storage.units.unit import TARGETS, Unit, UnitKind


class NoTracking:
    """The methods of `Tracking` that a writer of units calls, without MLflow."""

    def writer_number(self, run_id: str) -> int:
        return 0

    def writing(self, run_id: str, name: str, writer: str) -> AbstractContextManager[None]:
        return nullcontext()


def commit(
    run: StoredRun, kind: UnitKind, cycle: int, inputs: dict[str, str] | None = None, data: bytes = b"x"
) -> Unit:
    with run.commit(kind, cycle, inputs or {}) as draft:
        (draft.directory / "data").write_bytes(data)
        draft.metrics += [Metric("counter/states", 10 * cycle, 10 * cycle), Metric("loss/mean", 10 * cycle, 0.5)]
    return run.unit(kind, cycle)


def damage(unit: Unit) -> None:
    (unit.directory / "data").write_bytes(b"damaged")


@contextmanager
def another_process(work: Callable[[Callable[[bytes], None]], None]) -> Iterator[tuple[int, Callable[[], bytes]]]:
    """Run `work` in another process, which is killed at the end of the block; `work` can send bytes to the test."""
    out, into = os.pipe()

    def say(said: bytes) -> None:
        os.write(into, said)

    child = os.fork()
    if child == 0:
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(120)  # ends that process if this one is killed
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
    """Be the writer of `run`, in the middle of a commit, until killed."""
    try:
        with run.writing(), run.commit(TARGETS, 1, {}) as draft:
            (draft.directory / "data").write_bytes(b"half")
            say(b"writing")
            signal.pause()
    except StorageError as error:
        say(f"refused: {error}".encode())
