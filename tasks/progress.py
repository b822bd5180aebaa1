"""How far a long task is, for whoever wants to show it.

Every report is a record of the logger `dqn.progress` with the attributes `stage`, `done`, `total`
and `cycle`; without a handler it costs next to nothing.
"""

from __future__ import annotations

import logging

from dqn.metrics import COUNTER_CYCLES

progress = logging.getLogger("dqn.progress")
progress.propagate = False
progress.setLevel(logging.INFO)


def report(stage: str, cycle: int, done: int, total: int) -> None:
    """Tell that `done` of `total` are done in a stage of a cycle."""
    if progress.handlers:
        extra = {"stage": stage, "cycle": cycle, "done": done, "total": total}
        progress.info("%s %d: %d of %d", stage, cycle, done, total, extra=extra)


def report_cycle(summary: dict[str, float]) -> None:
    """Tell the figures of a finished cycle, by the names they have in MLflow."""
    if progress.handlers:
        progress.info("cycle %d", summary[COUNTER_CYCLES], extra={"summary": summary})


def report_run(run_id: str) -> None:
    """Tell which run is trained from now on."""
    if progress.handlers:
        progress.info("run %s", run_id, extra={"run_id": run_id})
