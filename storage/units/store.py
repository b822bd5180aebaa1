"""Stores of units, and the commit of a unit, which is atomic.

A unit is staged in a directory of its own and then published. On a file system, all its files and directories are
fsynced, and one rename publishes it. storage.units.s3_store has the protocol for S3.
"""

from __future__ import annotations

import re
import shutil
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from storage.units.unit import Draft, Unit, UnitKind, cycle_name, describe

Fence = Callable[[], AbstractContextManager[None]]  # see `UnitStore.publish`


class UnitStore(ABC):
    """Store of the units of one kind, each under the number of its cycle. Its text is its path or URL."""

    staging: Path  # a local directory for units before their commit and after their removal

    @abstractmethod
    def __truediv__(self, name: str) -> UnitStore:
        """The store of that name below this one."""

    @property
    @abstractmethod
    def url(self) -> str:
        """URL of the store."""

    @abstractmethod
    def names(self) -> list[str]:
        """Names of the stores directly below this one."""

    @abstractmethod
    def version(self, cycle: int) -> str:
        """Version token (ETag) of the committed unit, for the compare-and-swap in `publish`; empty without one."""

    @abstractmethod
    def publish(self, unit: Unit, version: str, fence: Fence = nullcontext) -> Unit:
        """Commit the staged `unit` durably, in place of the unit of that `version` if there is one.

        Args:
            unit: the unit, in its staging directory.
            version: version token of the committed unit.
            fence: context that is entered when all files are written, before the unit becomes visible. Nothing is
                published if it raises an error.

        Returns:
            The unit, with the directory from which its files can be read.

        Raises:
            OSError: a full disk, or any other failure; nothing was published.
            StorageError: another writer has committed another unit in the meantime.
        """

    @abstractmethod
    def open(self, cycle: int, known: str = "", *, from_cache: bool = True) -> Unit | None:
        """The unit of a cycle, checked, with its files in a local directory; None if there is none.

        Args:
            cycle: number of the cycle.
            known: if the unit has this digest, its files are not checked, because the caller has their content.
            from_cache: whether files may come from the local cache instead of the store.

        Raises:
            CorruptUnitError: the unit does not match its manifest.
            NewerFormatError: a newer release committed the unit.
            OSError: the unit cannot be read.
        """

    @abstractmethod
    def cycles(self) -> list[int]:
        """Numbers of the cycles that have a unit in this store, newest first."""

    @abstractmethod
    def discard(self, cycle: int) -> None:
        """Remove the unit of a cycle, if there is one. It disappears at once, and then its files are removed."""

    def prune(self, before: int, spared: int | None = None) -> None:
        """Remove the units of all cycles before number `before`, except the cycle `spared`."""
        for cycle in self.cycles():
            if cycle < before and cycle != spared:
                self.discard(cycle)

    @abstractmethod
    def put_file(self, name: str, file: Path) -> None:
        """Move a finished file, which belongs to no unit, to `name` in this store, atomically."""

    @abstractmethod
    def read_record(self, name: str) -> tuple[bytes, str]:
        """The content and the version token of the file `name`, which belongs to no unit; both empty without one."""

    @abstractmethod
    def write_record(self, name: str, text: bytes, version: str) -> str:
        """Replace the file `name` if it still has that `version`. It is atomic, but a power loss may undo or tear it.

        Returns:
            The new version; empty if the file has another version.

        Raises:
            OSError: the store does not answer, or cannot be written.
        """

    @abstractmethod
    def records_locked(self) -> AbstractContextManager[None]:
        """A context in which no process can write a record. S3 has no locks, so there any process can.

        Raises:
            StorageError: another process has held the lock for RECORD_LOCK_SECONDS.
        """

    def clear_staging(self) -> None:
        """Remove what killed writers left in `staging`. Only the writer of the run may call this."""
        shutil.rmtree(self.staging, ignore_errors=True)


@contextmanager
def committing(
    store: UnitStore,
    *,
    kind: UnitKind,
    cycle: int,
    inputs: Mapping[str, str],
    made_by: Mapping[str, str],
    fence: Fence = nullcontext,
) -> Iterator[Draft]:
    """Commit the files that the block writes as the unit of `cycle`, or nothing if anything fails.

    A unit that is already committed there is replaced. See `UnitStore.publish` for `fence`.

    Raises:
        OSError: a full disk, or any other failure to write or to fsync; nothing was published.
        StorageError: another writer has committed another unit in the meantime.
    """
    version = store.version(cycle)
    stage = store.staging / f"{kind}-{cycle:05d}-{uuid.uuid4().hex}"
    stage.mkdir(parents=True)
    try:
        draft = Draft(stage)
        yield draft
        draft._unit = store.publish(describe(draft, kind, cycle, inputs, made_by), version, fence)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def cycles_in(names: Iterable[str]) -> list[int]:
    """Numbers of the cycles whose names are among `names`, newest first; other names are skipped."""
    numbers = {int(name) for name in names if re.fullmatch("[0-9]{5,18}", name) and name == cycle_name(int(name))}
    return sorted(numbers, reverse=True)
