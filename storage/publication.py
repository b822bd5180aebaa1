"""Publication of a run's metrics in MLflow, and pruning of its old cycles. Only the run's writer calls these."""

from __future__ import annotations

import logging

from storage.durable import discard
from storage.errors import UnreachableError
from storage.runs import StoredRun
from storage.selection import best_cycle
from storage.units.local_store import write_manifest
from storage.units.unit import CHECKPOINT, EXPERIENCE, KINDS, Unit, cycle_name, read_manifest

_log = logging.getLogger(__name__)


def resume_run(run: StoredRun) -> Unit:
    """Prepare the run for more cycles: publish the metrics that its last writer did not publish, and prune.

    Returns:
        The newest valid checkpoint.

    Raises:
        StorageError: there is no valid checkpoint, or MLflow does not answer.
    """
    run.tracking.forget_published(run.run_id)
    newest = run.newest_checkpoint()
    publish_waiting(run)
    run.tracking.publish(run.run_id, newest)
    config = run.metadata(newest).config
    prune_old_cycles(run, newest.cycle, config.keep_cycles, config.replay_cycles)
    return newest


def publish(run: StoredRun, unit: Unit) -> None:
    """Log the metrics of a committed unit in MLflow. Calling it again changes nothing.

    While MLflow does not answer, the metrics wait in the home, because the training does not depend on MLflow.

    Raises:
        OSError: MLflow does not answer, and the metrics cannot be written to the home.
    """
    try:
        publish_waiting(run)
        run.tracking.publish(run.run_id, unit)
    except UnreachableError as error:
        _log.warning("%s; the metrics of %s %d wait in the home", error, unit.kind, unit.cycle)
        waiting = run.settings.unpublished(run.run_id) / f"{unit.kind}-{cycle_name(unit.cycle)}"
        write_manifest(unit, waiting, run.settings.staging(run.run_id))


def publish_waiting(run: StoredRun) -> None:
    """Log the metrics that wait in the home.

    Raises:
        UnreachableError: MLflow does not answer.
    """
    waiting = run.settings.unpublished(run.run_id)
    for directory in sorted(waiting.iterdir()) if waiting.is_dir() else ():
        run.tracking.publish(run.run_id, read_manifest(directory))
        discard(directory, run.settings.staging(run.run_id))


def prune_old_cycles(run: StoredRun, cycle: int, keep_cycles: int, replay_cycles: int = 1) -> None:
    """Remove all units but those of the newest `keep_cycles` cycles up to `cycle`. The best checkpoint is spared.

    Experience is kept for `replay_cycles - 1` cycles more, because a run that resumes from the oldest checkpoint
    needs as many cycles in its replay memory as it had.
    """
    best = best_cycle(run)
    for kind in run.kinds(*KINDS):
        keep = keep_cycles + (replay_cycles - 1 if kind.name == EXPERIENCE.name else 0)
        run.prune(kind, cycle - keep + 1, best if kind == CHECKPOINT else None)
