"""One training run as it is stored: where its units are, its newest checkpoint, the lock of its writer.

Commands that list runs import this module, so it imports torch only in the functions that read or write checkpoints.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from storage.errors import CorruptUnitError, StorageError
from storage.lease import fence, is_leased, leased, recorded_writer, writer_here
from storage.run_lock import is_held, one_writer
from storage.settings import Settings
from storage.tracking import Tracking
from storage.units.open_store import open_store
from storage.units.store import UnitStore, committing
from storage.units.unit import CHECKPOINT, EVALUATION, Draft, Unit, UnitKind, cycle_name

if TYPE_CHECKING:
    from dqn.checkpoint import Checkpoint, CheckpointMetadata
    from dqn.config import TrainConfig

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoredRun:
    """One training run: where it stores its units, each under the number of the cycle that made it."""

    run_id: str
    name: str
    settings: Settings
    tracking: Tracking
    artifacts: UnitStore
    replay: UnitStore
    shards: int = 1

    @cached_property
    def config(self) -> TrainConfig:
        """The configuration of the run, which is part of every checkpoint.

        Raises:
            StorageError: there is no valid checkpoint.
        """
        return self.metadata(self.newest_checkpoint()).config

    def kinds(self, *kinds: UnitKind) -> list[UnitKind]:
        """The kinds in which this run stores `kinds`: one for each shard, if it has several shards."""
        return [part for kind in kinds for part in kind.of_shards(self.shards)]

    def store(self, kind: UnitKind) -> UnitStore:
        """Where the units of a kind are stored."""
        if kind == CHECKPOINT:
            return self.artifacts / "checkpoints"
        return (self.artifacts if kind.name == EVALUATION.name else self.replay) / str(kind)

    def cycles(self, kind: UnitKind) -> list[int]:
        """Numbers of the cycles that have a unit of a kind, newest first."""
        return self.store(kind).cycles()

    @contextmanager
    def commit(
        self, kind: UnitKind, cycle: int, inputs: Mapping[str, str], made_by: Mapping[str, str] | None = None
    ) -> Iterator[Draft]:
        """Commit what the block writes as the unit of `kind` for `cycle`; see `storage.units.store.committing`.

        The run must have the same writer at the end of the block as at its beginning, which is usually this process,
        or the trainer for which this process works. Only evaluations can be committed beside a writer.

        Raises:
            StorageError: another process has become the writer; the message names that process.
        """
        writer = writer_here(self._lease)
        fenced = writer is not None or kind.name != EVALUATION.name
        if fenced and writer is None:
            writer = recorded_writer(self._lease)

        def unchanged_writer() -> AbstractContextManager[None]:
            return fence(self._lease, self.name, writer) if fenced else nullcontext()

        try:
            with committing(
                self.store(kind),
                kind=kind,
                cycle=cycle,
                inputs=inputs,
                made_by={"mlflow_run_id": self.run_id, **(made_by or {})},
                fence=unchanged_writer,
            ) as draft:
                yield draft
        except (FileNotFoundError, StorageError):
            with unchanged_writer():  # another writer removes what it finds in `staging`
                raise

    def unit(self, kind: UnitKind, cycle: int, known: str = "", *, from_cache: bool = True) -> Unit:
        """The committed unit of `kind` for `cycle`, checked unless its digest is `known`; see `UnitStore.open`.

        Raises:
            StorageError: there is none, or it is corrupt.
        """
        unit = self.store(kind).open(cycle, known, from_cache=from_cache)
        if unit is None:
            self.check_writer()  # another writer may have pruned it
            raise StorageError(f"run {self.run_id} has no {kind} of cycle {cycle}: it was pruned or never made")
        if (unit.kind, unit.cycle) != (kind, cycle):
            raise CorruptUnitError(f"{self.store(kind) / cycle_name(cycle)} is the {unit.kind} of cycle {unit.cycle}")
        return unit

    def made(self, kind: UnitKind, cycle: int, inputs: Mapping[str, str]) -> Unit | None:
        """The unit if it was committed from exactly these inputs. A corrupt unit is logged and counts as none."""
        try:
            unit = self.store(kind).open(cycle)
        except CorruptUnitError as error:
            _log.warning("%s; it is made again", error)
            return None
        fits = unit is not None and (unit.kind, unit.cycle, unit.inputs) == (kind, cycle, dict(inputs))
        return unit if fits else None

    def checkpoint(self, unit: Unit) -> Checkpoint:
        """The checkpoint in `unit`."""
        from storage.formats.checkpoint import read_checkpoint

        return read_checkpoint(unit.directory)

    def metadata(self, unit: Unit) -> CheckpointMetadata:
        """The metadata of the checkpoint in `unit`, without its tensors."""
        from storage.formats.checkpoint import read_metadata

        return read_metadata(unit.directory)

    def newest_checkpoint(self) -> Unit:
        """The newest valid checkpoint. Corrupt ones are logged and skipped.

        Raises:
            StorageError: there is no valid checkpoint.
        """
        problems: list[str] = []
        for cycle in self.cycles(CHECKPOINT):
            try:
                return self.unit(CHECKPOINT, cycle)
            except CorruptUnitError as error:
                _log.warning("%s; the checkpoint before it is used", error)
                problems.append(str(error))
        raise StorageError(problems[0] if problems else f"run {self.run_id} has no checkpoint; start a new run")

    def prune(self, kind: UnitKind, before: int, spared: int | None = None) -> None:
        """Remove the units of a kind of all cycles before number `before`, except the cycle `spared`."""
        self.store(kind).prune(before, spared)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Be the run's writer during the block, and remove what a killed writer left.

        The lock in the home excludes other processes with this home. The lease beside the artifacts and the tag in
        MLflow exclude processes with other homes. The lease of a process that died on another machine must end first.

        Raises:
            StorageError: another process is the writer, and the message names it; or MLflow does not answer.
        """
        with (
            one_writer(self.settings.lock(self.run_id), f"run {self.name}"),
            leased(self._lease, self.name, self.tracking.writer_number(self.run_id)) as writer,
            self.tracking.writing(self.run_id, self.name, f"{writer.number}: {writer}"),
        ):
            self.check_writer()  # otherwise the tag may be that of a process which was suspended before it set it
            for store in (self.artifacts, self.replay):
                store.clear_staging()
            yield

    def check_writer(self) -> None:
        """Raise a StorageError if this process was the run's writer, and another one has become it in the meantime."""
        if writer := writer_here(self._lease):
            with fence(self._lease, self.name, writer):
                pass

    @property
    def _lease(self) -> UnitStore:
        """Where the record of the run's writer is stored."""
        return self.artifacts / "writer"

    def is_started(self) -> bool:
        """Whether the run has a checkpoint, valid or not."""
        return bool(self.cycles(CHECKPOINT))

    def was_written_here(self) -> bool:
        """Whether a process with this home has ever been the writer of the run."""
        return self.settings.lock(self.run_id).exists()

    def is_held(self) -> bool:
        """Whether a process is the writer of the run now. One that died on another machine counts until a resume."""
        return is_held(self.settings.lock(self.run_id)) or is_leased(self._lease)


@lru_cache(maxsize=4)
def _tracking(settings: Settings) -> Tracking:
    return Tracking(settings)


def open_tracking() -> Tracking:
    """The MLflow store in the settings of the environment. Each process opens it once."""
    return _tracking(Settings.from_environment())


@lru_cache(maxsize=16)
def _stored_run(tracking: Tracking, run_id: str) -> StoredRun:
    run = tracking.get_run(run_id)
    settings, shards = tracking.settings, run.data.params.get("shards", "1")
    if not shards.isdecimal() or not int(shards):
        raise CorruptUnitError(f"run {run_id} has {shards!r} shards in MLflow, which is no number of shards")
    artifacts = open_store(tracking.artifacts_of(run), settings, run_id)
    replay = open_store(f"{settings.replay.rstrip('/')}/{run_id}", settings, run_id)
    return StoredRun(run_id, str(run.info.run_name), settings, tracking, artifacts, replay, int(shards))


def open_run(run_id: str) -> StoredRun:
    """The run with that id. Each process looks it up once."""
    return _stored_run(open_tracking(), run_id)


def create_run(config: TrainConfig, action_names: list[str], name: str | None, tags: Mapping[str, str]) -> StoredRun:
    """Create a training run of a resolved configuration, with the checkpoint of cycle 0."""
    from dqn.checkpoint import first_checkpoint
    from storage.formats.checkpoint import write_checkpoint

    tracking = open_tracking()
    # Fails before the run is created if the replay store does not answer.
    open_store(tracking.settings.replay, tracking.settings, "").names()
    started: Any = tracking.start_run(config, name, tags)
    run = open_run(started.info.run_id)
    with run.writing(), run.commit(CHECKPOINT, 0, {}) as draft:
        write_checkpoint(draft.directory, first_checkpoint(config, action_names))
    return run
