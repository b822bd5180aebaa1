"""Sweeps as they are stored: a run in MLflow above those of their trainings, and a directory in the home."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from dqn.metrics import SWEEP_OBJECTIVE
from storage.lease import leased
from storage.run_lock import one_writer
from storage.runs import StoredRun, open_run, open_tracking
from storage.settings import Settings
from storage.tracking import Tracking
from storage.units.open_store import open_store

TRIAL, SEED = "dqn.trial", "dqn.seed"  # tags of a training of a sweep


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


@contextmanager
def open_sweep(name: str, game: str, tags: Mapping[str, str]) -> Iterator[StoredSweep]:
    """The sweep called `name`, which is created unless there is one. The block is its one writer.

    Raises:
        StorageError: another process runs the sweep; the message names that process.
    """
    settings = Settings.from_environment()
    with one_writer(settings.lock(f"sweep-{name}"), f"sweep {name}"):
        tracking = open_tracking()
        found = next(iter(tracking.sweeps(name)), None) or tracking.start_sweep(game, name, tags)
        store = open_store(tracking.artifacts_of(found), settings, found.info.run_id) / "writer"
        with leased(store, name):
            yield StoredSweep(found.info.run_id, name, tracking)
