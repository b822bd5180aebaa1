"""Units of a run, small and easily damaged."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from dqn.metrics import Metric
from storage.errors import StorageError
from storage.runs import StoredRun
from storage.units.unit import TARGETS, Unit, UnitKind


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
        with run.writing(), run.commit(TARGETS, 1, {}) as draft:
            (draft.directory / "data").write_bytes(b"half")
            say(b"writing")
            signal.pause()
    except StorageError as error:
        say(f"refused: {error}".encode())
