"""All training runs of an MLflow store: their list, runs whose writer died, and the run of a flow run."""

from __future__ import annotations

import logging
import time

from dqn.metrics import COUNTER_STATES, SCORE_MEAN_100
from storage.errors import StorageError
from storage.run_rows import RunRow
from storage.run_tags import PRESET
from storage.runs import StoredRun, open_run, open_tracking
from storage.sweeps import mark_dead_sweeps

START_SECONDS = 60  # upper limit of the time from the creation of a run to its first checkpoint

_log = logging.getLogger(__name__)


def run_of_flow(flow_run_id: str) -> StoredRun | None:
    """The run that a Prefect flow run started or resumed before it was retried, if any.

    A run whose process died before its first checkpoint cannot be resumed, so it is deleted.
    """
    found = open_tracking().run_of_flow(flow_run_id)
    if found is None:
        return None
    run = open_run(found.info.run_id)
    if not run.is_started() and not run.is_held():
        run.tracking.delete_run(run.run_id)
        return None
    return run


def mark_dead_runs() -> list[StoredRun]:
    """Mark runs whose writer died as killed, and delete those without a checkpoint.

    Runs that no process with this home has written are skipped, because they belong to other machines.

    Returns:
        The marked runs.
    """
    marked, tracking = [], open_tracking()
    for found in tracking.runs("attributes.status = 'RUNNING'"):
        try:
            run = open_run(found.info.run_id)
        except StorageError as error:
            _log.warning("%s", error)
            continue
        if not run.was_written_here() or run.is_held():
            continue
        if run.is_started():
            tracking.set_status(run.run_id, "KILLED")
            marked.append(run)
        elif time.time() - found.info.start_time / 1000 > START_SECONDS:
            tracking.delete_run(run.run_id)
    return marked


def runs_in_mlflow() -> list[RunRow]:
    """All training runs, newest first. Runs and sweeps whose writer died are marked as killed."""
    tracking, rows = open_tracking(), []
    mark_dead_runs()
    mark_dead_sweeps()
    for run in tracking.runs():
        try:
            open_run(run.info.run_id)
        except StorageError as error:
            _log.warning("%s", error)
            continue
        info, data = run.info, run.data
        counts = data.metrics.get(COUNTER_STATES), data.metrics.get(SCORE_MEAN_100)
        name, game, preset = str(info.run_name), data.params.get("game"), data.tags.get(PRESET)
        rows.append(RunRow.of(name, info.run_id, game, preset, info.status, *counts, info.start_time))
    return rows
