"""One training run as it is stored: its units, its newest checkpoint, its one writer."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from dqn.checkpoint import Checkpoint, CheckpointMetadata, first_checkpoint
from dqn.config import TrainConfig
from dqn.metrics import EVALUATION_MEAN
from storage.durable import discard
from storage.errors import CorruptUnitError, StorageError, UnreachableError
from storage.formats.checkpoint import read_checkpoint, read_metadata, write_checkpoint
from storage.run_lock import is_held, one_writer
from storage.settings import Settings
from storage.tracking import Tracking
from storage.units.local_store import keep_manifest
from storage.units.open_store import open_store
from storage.units.store import UnitStore, committing
from storage.units.unit import Draft, Unit, cycle_name, read_manifest

KINDS = ("experience", "targets", "checkpoint")
_SHARDED = KINDS[:2]
EVALUATION = "evaluation"  # by the run's own protocol; by another one, its name follows after a dash

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoredRun:
    """Where one run keeps its units. All units carry the number of the cycle that made them."""

    run_id: str
    name: str
    settings: Settings
    tracking: Tracking
    artifacts: UnitStore
    replay: UnitStore
    shards: int = 1

    @cached_property
    def config(self) -> TrainConfig:
        """The configuration of the run, which all its checkpoints hold.

        Raises:
            StorageError: no checkpoint is whole.
        """
        return self.metadata(self.newest_checkpoint()).config

    def kinds(self, *kinds: str) -> list[str]:
        """The kinds of units that `kinds` come in: of experience and targets one for each of several shards."""
        shards = [f"-{shard}" for shard in range(self.shards)] if self.shards > 1 else [""]
        return [kind + shard for kind in kinds for shard in (shards if kind in _SHARDED else [""])]

    def place(self, kind: str) -> UnitStore:
        """Where the units of a kind stand."""
        if kind == "checkpoint":
            return self.artifacts / "checkpoints"
        return (self.artifacts if kind.startswith(EVALUATION) else self.replay) / kind

    def cycles(self, kind: str) -> list[int]:
        """Numbers of the cycles that have a unit of a kind, newest first."""
        return self.place(kind).cycles()

    def evaluation_kinds(self) -> list[str]:
        """Kinds of the evaluations there are, by whatever protocol."""
        return [name for name in self.artifacts.names() if name.startswith(EVALUATION)]

    @contextmanager
    def commit(
        self, kind: str, cycle: int, inputs: Mapping[str, str], made_by: Mapping[str, str] | None = None
    ) -> Iterator[Draft]:
        """Commit what the block writes as this run's unit of `kind` for `cycle`; see storage.units.store."""
        with committing(
            self.place(kind),
            kind=kind,
            cycle=cycle,
            inputs=inputs,
            made_by={"mlflow_run_id": self.run_id, **(made_by or {})},
        ) as draft:
            yield draft

    def unit(self, kind: str, cycle: int, known: str = "", *, kept: bool = True) -> Unit:
        """The committed unit of `kind` for `cycle`, verified unless its digest is `known`; see storage.units.store.

        Raises:
            StorageError: there is none, or it is corrupt.
        """
        unit = self.place(kind).open(cycle, known, kept=kept)
        if unit is None:
            raise StorageError(f"run {self.run_id} has no {kind} of cycle {cycle}: it was pruned or never made")
        if (unit.kind, unit.cycle) != (kind, cycle):
            raise CorruptUnitError(f"{self.place(kind) / cycle_name(cycle)} is the {unit.kind} of cycle {unit.cycle}")
        return unit

    def made(self, kind: str, cycle: int, inputs: Mapping[str, str]) -> Unit | None:
        """The unit if it was committed from just these inputs; a broken one is as good as none."""
        try:
            unit = self.place(kind).open(cycle)
        except CorruptUnitError as error:
            _log.warning("%s; making it again", error)
            return None
        fits = unit is not None and (unit.kind, unit.cycle, unit.inputs) == (kind, cycle, dict(inputs))
        return unit if fits else None

    def checkpoint(self, unit: Unit) -> Checkpoint:
        """What a checkpoint's unit holds."""
        return read_checkpoint(unit.directory)

    def metadata(self, unit: Unit) -> CheckpointMetadata:
        """The small part of the checkpoint in `unit`."""
        return read_metadata(unit.directory)

    def newest_checkpoint(self) -> Unit:
        """The newest checkpoint that is whole; broken ones are told in the log and passed over.

        Raises:
            StorageError: there is none.
        """
        problems: list[str] = []
        for cycle in self.cycles("checkpoint"):
            try:
                return self.unit("checkpoint", cycle)
            except CorruptUnitError as error:
                _log.warning("%s; going back to the checkpoint before it", error)
                problems.append(str(error))
        raise StorageError(problems[0] if problems else f"run {self.run_id} has no checkpoint; start a new run")

    def evaluations(self) -> Iterator[Unit]:
        """The evaluations by the run's own protocol that are whole, newest first."""
        for cycle in self.cycles(EVALUATION):
            try:
                yield self.unit(EVALUATION, cycle)
            except StorageError as error:
                _log.warning("%s; it is left out", error)

    def evaluated_states(self) -> int:
        """States played by the run when its newest evaluation was made; 0 before the first."""
        return next((unit.metrics[0].step for unit in self.evaluations()), 0)

    def best_cycle(self) -> int | None:
        """The cycle of the checkpoint with the best mean score when evaluated, the first of equals.

        Checkpoints that were pruned are not looked at: none of them was the best.
        """
        means: dict[int, float] = {}
        for cycle in sorted(set(self.cycles("checkpoint")) & set(self.cycles(EVALUATION))):
            try:
                means[cycle] = self.unit(EVALUATION, cycle).metric(EVALUATION_MEAN)
            except StorageError as error:
                _log.warning("%s; it is left out", error)
        return max(means, key=means.__getitem__, default=None)

    def find_checkpoint(self, which: str) -> Unit:
        """The checkpoint that is `latest`, `best`, or of the cycle with that number.

        Raises:
            ValueError: there is no such checkpoint; says which there are.
            StorageError: it is broken.
        """
        cycles = self.cycles("checkpoint")
        if which == "latest":  # a broken one is not passed over: scores would silently be those of another
            return self.unit("checkpoint", cycles[0]) if cycles else self.newest_checkpoint()
        best = self.best_cycle()
        there = f"run {self.name} has the checkpoints {', '.join(map(str, sorted(cycles)))}"
        if which == "best":
            if best is None:
                raise ValueError(f"run {self.name} was not evaluated yet; `dqn evaluate {self.name}` does it")
            which = str(best)
        if not which.isdecimal():
            raise ValueError(f"checkpoint is {which!r}; it must be latest, best or the number of a cycle; {there}")
        if int(which) not in cycles:
            raise ValueError(f"there is no checkpoint of cycle {int(which)}; {there}")
        return self.unit("checkpoint", int(which))

    def resume(self) -> Unit:
        """Take the run up where its last writer left it: returns the newest whole checkpoint.

        What that writer had still to do with it is done: its metrics are published, old cycles pruned.

        Raises:
            StorageError: there is no whole checkpoint, or MLflow does not answer.
        """
        self.tracking.forget_published(self.run_id)
        newest = self.newest_checkpoint()
        self.publish_waiting()
        self.tracking.publish(self.run_id, newest)
        config = self.metadata(newest).config
        self.prune(newest.cycle, config.keep_cycles, config.replay_cycles)
        return newest

    def prune(self, cycle: int, keep_cycles: int, replay_cycles: int = 1) -> None:
        """Remove units of cycles `keep_cycles` or more behind `cycle`, but for the best checkpoint.

        Experience is kept for longer, so that from every checkpoint left the run can go on with as many
        cycles in its replay memory as it had.
        """
        best = self.best_cycle()
        for kind in self.kinds(*KINDS):
            keep = keep_cycles + (replay_cycles - 1 if kind.startswith("experience") else 0)
            self.place(kind).prune(cycle - keep + 1, best if kind == "checkpoint" else None)

    def publish(self, unit: Unit) -> None:
        """Log a committed unit's metrics in MLflow, once however often it is called.

        While MLflow does not answer they wait in the home, for work does not depend on it.

        Raises:
            OSError: MLflow does not answer, and they could not be kept.
        """
        try:
            self.publish_waiting()
            self.tracking.publish(self.run_id, unit)
        except UnreachableError as error:
            _log.warning("%s; the metrics of %s %d wait in the home", error, unit.kind, unit.cycle)
            waiting = self.settings.unpublished(self.run_id) / f"{unit.kind}-{cycle_name(unit.cycle)}"
            keep_manifest(unit, waiting, self.settings.staging(self.run_id))

    def publish_waiting(self) -> None:
        """Log what waited for MLflow to answer.

        Raises:
            UnreachableError: it still does not.
        """
        waiting = self.settings.unpublished(self.run_id)
        for directory in sorted(waiting.iterdir()) if waiting.is_dir() else ():
            self.tracking.publish(self.run_id, read_manifest(directory))
            discard(directory, self.settings.staging(self.run_id))

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Be the run's one writer, and remove what a killed one left behind.

        Raises:
            StorageError: another process is; the message says which.
        """
        with one_writer(self.settings.lock(self.run_id), self.name):
            for place in (self.artifacts, self.replay):
                place.clear_staging()
            yield

    def is_started(self) -> bool:
        """Whether it has a checkpoint, be it whole or not."""
        return bool(self.cycles("checkpoint"))

    def was_written_here(self) -> bool:
        """Whether some process with this home has ever been the run's writer."""
        return self.settings.lock(self.run_id).exists()

    def is_held(self) -> bool:
        """Whether some process is the run's writer now."""
        return is_held(self.settings.lock(self.run_id))


@lru_cache(maxsize=4)
def _tracking(settings: Settings) -> Tracking:
    return Tracking(settings)


def open_tracking() -> Tracking:
    """The MLflow store that the environment names; opened once in a process."""
    return _tracking(Settings.from_environment())


@lru_cache(maxsize=16)
def _stored_run(tracking: Tracking, run_id: str) -> StoredRun:
    run = tracking.client.get_run(run_id)
    settings, shards = tracking.settings, int(run.data.params.get("shards", 1))
    artifacts = open_store(tracking.artifacts_of(run), settings, run_id)
    replay = open_store(f"{settings.replay.rstrip('/')}/{run_id}", settings, run_id)
    return StoredRun(run_id, str(run.info.run_name), settings, tracking, artifacts, replay, shards)


def open_run(run_id: str) -> StoredRun:
    """The stored run with that id; looked up once in a process."""
    return _stored_run(open_tracking(), run_id)


def create_run(config: TrainConfig, action_names: list[str], name: str | None, tags: Mapping[str, str]) -> StoredRun:
    """Create a training run of a resolved configuration, with the checkpoint of cycle 0."""
    tracking = open_tracking()
    open_store(tracking.settings.replay, tracking.settings, "").names()  # whether it answers, before anything is made
    started: Any = tracking.start_run(config, name, tags)
    run = open_run(started.info.run_id)
    with run.writing(), run.commit("checkpoint", 0, {}) as draft:
        write_checkpoint(draft.directory, first_checkpoint(config, action_names))
    return run
