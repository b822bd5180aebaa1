"""Sweeps as they are stored: a run in MLflow above those of their trainings, and a directory in the home."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mlflow.entities import Run
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from dqn.metrics import SWEEP_OBJECTIVE
from storage.lease import is_leased, leased
from storage.run_lock import is_held, one_writer
from storage.run_tags import SEED, TRIAL
from storage.runs import StoredRun, open_run, open_tracking
from storage.settings import Settings
from storage.tracking import Tracking
from storage.units.open_store import open_store
from storage.units.store import UnitStore


@dataclass(frozen=True)
class StoredSweep:
    """One sweep: its run in MLflow, and the trainings below it."""

    run_id: str
    name: str
    tracking: Tracking

    @property
    def study(self) -> Path:
        """The file of its study."""
        return self.tracking.settings.sweep(self.run_id) / "study.db"

    @property
    def artifacts(self) -> str:
        """The URL of its artifacts."""
        return self.tracking.artifacts_of(self.tracking.get_run(self.run_id))

    def training_tags(self, trial: int, seed: int) -> dict[str, str]:
        """The tags by which the training of a trial with a seed is found."""
        return {MLFLOW_PARENT_RUN_ID: self.run_id, TRIAL: str(trial), SEED: str(seed)}

    def training(self, trial: int, seed: int) -> StoredRun | None:
        """The training of a trial with a seed, if it was created."""
        wanted = self.training_tags(trial, seed)
        where = " and ".join(f"tags.`{name}` = '{value}'" for name, value in wanted.items())
        found = self.tracking.runs(where)
        return open_run(found[0].info.run_id) if found else None

    def record_objective(self, runs: list[StoredRun], value: float) -> None:
        """Log the objective of a trial to all its trainings, so that MLflow can sort them by it."""
        for run in runs:
            self.tracking.log_metric(run.run_id, SWEEP_OBJECTIVE, value)


def mark_dead_sweeps() -> list[str]:
    """Mark sweeps whose writer died as killed, and return their names.

    Sweeps that no process with this home has written are skipped, because they belong to other machines.
    """
    settings, tracking, marked = Settings.from_environment(), open_tracking(), []
    for found in tracking.sweeps():
        name = str(found.info.run_name)
        lock = _lock(settings, name)
        if found.info.status != "RUNNING" or not lock.exists() or is_held(lock) or is_leased(_lease(tracking, found)):
            continue
        tracking.set_status(found.info.run_id, "KILLED")
        marked.append(name)
    return marked


@contextmanager
def open_sweep(name: str, game: str, tags: Mapping[str, str]) -> Iterator[StoredSweep]:
    """The sweep called `name`, which is created unless there is one. The block is its one writer.

    Raises:
        StorageError: another process runs the sweep; the message names that process.
    """
    settings = Settings.from_environment()
    with one_writer(_lock(settings, name), f"sweep {name}"):
        tracking = open_tracking()
        found = next(iter(tracking.sweeps(name)), None) or tracking.start_sweep(game, name, tags)
        with leased(_lease(tracking, found), name):
            yield StoredSweep(found.info.run_id, name, tracking)


def _lock(settings: Settings, name: str) -> Path:
    return settings.lock(f"sweep-{name}")


def _lease(tracking: Tracking, found: Run) -> UnitStore:
    return open_store(tracking.artifacts_of(found), tracking.settings, found.info.run_id) / "writer"
