"""Progress of long tasks, as records of the logger `dqn.progress`.

A record has the attributes `stage`, `done`, `total` and `cycle`. Without a handler nothing is logged, at little cost.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from threading import Event

from dqn.metrics import COUNTER_CYCLES

progress = logging.getLogger("dqn.progress")
progress.propagate = False
progress.setLevel(logging.INFO)

_stopped = Event()


@contextmanager
def stopped() -> Iterator[None]:
    """During the block, tasks that run in other threads fail at their next report."""
    _stopped.set()
    try:
        yield
    finally:
        _stopped.clear()


def report(stage: str, cycle: int, done: int, total: int) -> None:
    """Report that `done` of `total` steps of a stage of a cycle are done.

    Raises:
        CancelledError: the flow run ends, so nobody waits for the result.
    """
    if _stopped.is_set():
        raise CancelledError(f"{stage} {cycle} was stopped, because the flow run ends")
    if progress.handlers:
        extra = {"stage": stage, "cycle": cycle, "done": done, "total": total}
        progress.info("%s %d: %d of %d", stage, cycle, done, total, extra=extra)


def report_cycle(summary: dict[str, float]) -> None:
    """Report the metrics of a finished cycle, by their names in MLflow."""
    if progress.handlers:
        progress.info("cycle %d", summary[COUNTER_CYCLES], extra={"summary": summary})


def report_run(run_id: str) -> None:
    """Report the id of the run that is trained from now on."""
    if progress.handlers:
        progress.info("run %s", run_id, extra={"run_id": run_id})


def report_table(line: str, columns: list[str], rows: list[list[str]]) -> None:
    """Report how far a sweep is, in a line and in a table."""
    if progress.handlers:
        progress.info("%s", line, extra={"columns": columns, "rows": rows})
