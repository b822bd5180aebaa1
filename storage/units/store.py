"""Where units stand, and how they come there whole or not at all.

A unit is staged in a directory of its own and then published. On a file system every file and directory of it is
fsynced, and one rename publishes it; storage.units.s3_store does it for an object store.
"""

from __future__ import annotations

import re
import shutil
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from storage.units.unit import Draft, Unit, UnitKind, cycle_name, describe


class UnitStore(ABC):
    """Where the units of one kind stand, each under the number of its cycle; its text is its path or URL."""

    staging: Path  # a directory of this machine for what is not committed yet, or not any more

    @abstractmethod
    def __truediv__(self, name: str) -> UnitStore:
        """The place of that name below this one."""

    @property
    @abstractmethod
    def url(self) -> str:
        """Its URL."""

    @abstractmethod
    def names(self) -> list[str]:
        """Names of the places directly below this one."""

    @abstractmethod
    def version(self, cycle: int) -> str:
        """Version token (ETag) of the committed unit, for the compare-and-swap in `publish`; empty without one."""

    @abstractmethod
    def publish(self, unit: Unit, version: str) -> Unit:
        """Commit the staged `unit` durably, in place of the unit of that `version` if there is one.

        Returns:
            The unit, with the directory where its files are to be read from now on.

        Raises:
            OSError: a full disk, or any other failure; nothing was published.
            StorageError: another writer has put another unit there meanwhile.
        """

    @abstractmethod
    def open(self, cycle: int, known: str = "", *, from_cache: bool = True) -> Unit | None:
        """The unit of a cycle with its files in a directory of this machine, checked; None where there is none.

        Args:
            known: of a unit with this digest files are not read: the caller has at hand what is in them.
            from_cache: whether files may come from this machine's cache instead of the store.

        Raises:
            CorruptUnitError: the unit does not match its manifest.
            OSError: it cannot be read.
        """

    @abstractmethod
    def cycles(self) -> list[int]:
        """Numbers of the cycles that have a unit here, newest first."""

    @abstractmethod
    def discard(self, cycle: int) -> None:
        """Remove the unit of a cycle, if any: out of its place at once, then its files."""

    def prune(self, before: int, spared: int | None = None) -> None:
        """Remove what is there of all cycles before number `before`, but for the one that is spared."""
        for cycle in self.cycles():
            if cycle < before and cycle != spared:
                self.discard(cycle)

    @abstractmethod
    def put_file(self, name: str, file: Path) -> None:
        """Move a finished file that is no unit's to `name` below this place, whole or not at all."""

    def clear_staging(self) -> None:
        """Remove what killed writers of this machine left behind; only the run's one writer may."""
        shutil.rmtree(self.staging, ignore_errors=True)


@contextmanager
def committing(
    store: UnitStore, *, kind: UnitKind, cycle: int, inputs: Mapping[str, str], made_by: Mapping[str, str]
) -> Iterator[Draft]:
    """Commit what the block writes as the unit of `cycle` in its place, or nothing if anything fails.

    A unit that stands there already is replaced.

    Raises:
        OSError: a full disk, or any other failure to write or to fsync; nothing was published.
        StorageError: another writer has put another unit there meanwhile.
    """
    version = store.version(cycle)
    stage = store.staging / f"{kind}-{cycle:05d}-{uuid.uuid4().hex}"
    stage.mkdir(parents=True)
    try:
        draft = Draft(stage)
        yield draft
        draft._unit = store.publish(describe(draft, kind, cycle, inputs, made_by), version)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def cycles_in(names: Iterable[str]) -> list[int]:
    """Numbers of the cycles that are named, newest first; other names are passed over."""
    numbers = {int(name) for name in names if re.fullmatch("[0-9]{5,18}", name) and name == cycle_name(int(name))}
    return sorted(numbers, reverse=True)
