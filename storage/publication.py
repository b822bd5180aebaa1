"""Publication of a run's metrics in MLflow, and pruning of its old cycles. Only the run's writer calls these."""

from __future__ import annotations

import logging

from dqn.config import TrainConfig
from storage.durable import discard
from storage.errors import StorageError, UnreachableError
from storage.runs import StoredRun
from storage.selection import best_cycle
from storage.units.local_store import write_manifest
from storage.units.unit import CHECKPOINT, EXPERIENCE, KINDS, Unit, cycle_name, read_manifest

_log = logging.getLogger(__name__)


def resume_run(run: StoredRun) -> Unit:
    """Prepare the run for more cycles: publish the metrics that its last writer did not publish, and prune.

    Returns:
        The newest valid checkpoint from which the run can continue.

    Raises:
        StorageError: there is no such checkpoint, or MLflow does not answer.
    """
    run.tracking.forget_published(run.run_id)
    newest = _newest_that_continues(run) if run.config.overlap == "yes" else run.newest_checkpoint()
    publish_waiting(run)
    run.tracking.publish(run.run_id, newest)
    prune_old_cycles(run, newest.cycle, run.config)
    return newest


def _newest_that_continues(run: StoredRun) -> Unit:
    """The newest valid checkpoint of a run with `overlap` from which the next cycle was played or can be played.

    The network of the checkpoint before it plays. If that is broken, the run continues from there.

    Raises:
        StorageError: there is no such checkpoint.
    """
    problem = ""
    for cycle in run.cycles(CHECKPOINT):
        try:
            checkpoint = run.unit(CHECKPOINT, cycle)
            if cycle and not _is_played(run, checkpoint):
                before = run.unit(CHECKPOINT, cycle - 1)
                if before.digest != checkpoint.inputs[CHECKPOINT.name]:
                    raise StorageError(f"checkpoint {cycle} of run {run.run_id} does not follow checkpoint {cycle - 1}")
            return checkpoint
        except StorageError as error:
            _log.warning("%s; the checkpoint before it is used", error)
            problem = problem or str(error)
    raise StorageError(problem or f"run {run.run_id} has no checkpoint; start a new run")


def _is_played(run: StoredRun, checkpoint: Unit) -> bool:
    """Whether the cycle after `checkpoint` is stored."""
    kinds = EXPERIENCE.of_shards(run.shards)
    inputs = {name: checkpoint.inputs[name] for name in (CHECKPOINT.name, *map(str, kinds))}
    return all(run.made(kind, checkpoint.cycle + 1, inputs) for kind in kinds)


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


def prune_old_cycles(run: StoredRun, cycle: int, config: TrainConfig) -> None:
    """Remove all units but those of the newest `keep_cycles` cycles up to `cycle`. The best checkpoint is spared.

    A run that resumes from the oldest of these checkpoints also needs the experience of `replay_cycles - 1` cycles
    before it, and with `overlap` the checkpoint before it, whose network plays.
    """
    best = best_cycle(run)
    for kind in run.kinds(*KINDS):
        keep = config.keep_cycles
        if kind.name == EXPERIENCE.name:
            keep += config.replay_cycles - 1
        elif kind == CHECKPOINT and config.overlap == "yes":
            keep += 1
        run.prune(kind, cycle - keep + 1, best if kind == CHECKPOINT else None)
