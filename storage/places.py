"""Where units stand, and how they come there whole or not at all.

A unit is staged in a directory of its own and then published. On a file system every file and directory of it is
fsynced, and one rename publishes it; storage.object_store does it for an object store.
"""

from __future__ import annotations

import os
import re
import shutil
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from storage.errors import StorageError
from storage.files import sync, sync_tree
from storage.settings import Settings
from storage.units import MANIFEST, Draft, Unit, cycle_name, describe, manifest_text, open_unit
from storage.urls import directory_of, is_local


class Place(ABC):
    """Where the units of one kind stand, each under the number of its cycle; its text is its path or URL."""

    staging: Path  # a directory of this machine for what is not committed yet, or not any more

    @abstractmethod
    def __truediv__(self, name: str) -> Place:
        """The place of that name below this one."""

    @property
    @abstractmethod
    def url(self) -> str:
        """Its URL."""

    @abstractmethod
    def names(self) -> list[str]:
        """Names of the places directly below this one."""

    @abstractmethod
    def standing(self, cycle: int) -> str:
        """What `publish` needs to know of the unit that stands there before another one is made."""

    @abstractmethod
    def publish(self, unit: Unit, standing: str) -> Unit:
        """Put the staged `unit` in its place, durably, instead of the `standing` one if there is any.

        Returns:
            The unit, with the directory where its files are to be read from now on.

        Raises:
            OSError: a full disk, or any other failure; nothing was published.
            StorageError: another writer has put another unit there meanwhile.
        """

    @abstractmethod
    def open(self, cycle: int, known: str = "", *, kept: bool = True) -> Unit | None:
        """The unit of a cycle with its files in a directory of this machine, checked; None where there is none.

        Args:
            known: of a unit with this digest files are not read: the caller has at hand what is in them.
            kept: whether copies of files that this machine keeps will do.

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
    def keep(self, name: str, file: Path) -> None:
        """Move a finished file that is no unit's to `name` below this place, whole or not at all."""

    def clear_staging(self) -> None:
        """Remove what killed writers of this machine left behind; only the run's one writer may."""
        shutil.rmtree(self.staging, ignore_errors=True)


@contextmanager
def committing(
    place: Place, *, kind: str, cycle: int, inputs: Mapping[str, str], made_by: Mapping[str, str]
) -> Iterator[Draft]:
    """Commit what the block writes as the unit of `cycle` in its place, or nothing if anything fails.

    A unit that stands there already is replaced.

    Raises:
        OSError: a full disk, or any other failure to write or to fsync; nothing was published.
        StorageError: another writer has put another unit there meanwhile.
    """
    standing = place.standing(cycle)
    stage = place.staging / f"{kind}-{cycle:05d}-{uuid.uuid4().hex}"
    stage.mkdir(parents=True)
    try:
        draft = Draft(stage)
        yield draft
        draft._unit = place.publish(describe(draft, kind, cycle, inputs, made_by), standing)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


@dataclass(frozen=True)
class LocalPlace(Place):
    """A directory of this machine; `staging` must be on the same file system."""

    directory: Path
    staging: Path

    def __str__(self) -> str:
        return str(self.directory)

    def __truediv__(self, name: str) -> LocalPlace:
        return LocalPlace(self.directory / name, self.staging)

    @property
    def url(self) -> str:
        """A file:// URL."""
        return self.directory.as_uri()

    def names(self) -> list[str]:
        """Names of all that is in the directory."""
        return sorted(_entries(self.directory))

    def standing(self, cycle: int) -> str:
        """Nothing: the lock of the run's one writer keeps others out."""
        return ""

    def publish(self, unit: Unit, standing: str) -> Unit:
        """Fsync all of it, rename it, and fsync the directories that lead to it."""
        directory = self.directory / cycle_name(unit.cycle)
        _write_and_publish(unit, unit.directory, directory, self.staging)
        return replace(unit, directory=directory)

    def open(self, cycle: int, known: str = "", *, kept: bool = True) -> Unit | None:
        """The unit where it stands: there are no copies."""
        return open_unit(self.directory / cycle_name(cycle), known)

    def cycles(self) -> list[int]:
        """Numbers that are names in the directory."""
        return cycles_in(_entries(self.directory))

    def discard(self, cycle: int) -> None:
        """Rename it into the staging area, and remove it there."""
        discard(self.directory / cycle_name(cycle), self.staging)

    def keep(self, name: str, file: Path) -> None:
        """Rename it."""
        (self.directory / name).parent.mkdir(parents=True, exist_ok=True)
        file.replace(self.directory / name)


def open_place(url: str, settings: Settings, run_id: str) -> Place:
    """The place of a run at `url`, which storage.urls has checked.

    Raises:
        StorageError: a package that it takes is not installed.
    """
    if is_local(url):
        directory = directory_of(url)
        at_home = directory.is_relative_to(settings.home)
        # What is renamed into its place must be on the same file system.
        staging = settings.staging(run_id) if at_home else directory.parent / "staging" / directory.name
        return LocalPlace(directory, staging)
    try:
        from storage.object_store import ObjectPlace
    except ModuleNotFoundError as error:
        raise StorageError(
            f"{url} needs a package that is not installed ({error.name}): pip install 'dqn[s3]'"
        ) from None
    return ObjectPlace(url, settings.staging(run_id), settings.cache(run_id))


def cycles_in(names: Iterable[str]) -> list[int]:
    """Numbers of the cycles that are named, newest first; other names are passed over."""
    numbers = {int(name) for name in names if re.fullmatch("[0-9]{5,18}", name) and name == cycle_name(int(name))}
    return sorted(numbers, reverse=True)


def keep_manifest(unit: Unit, directory: Path, staging: Path) -> None:
    """Keep a copy of the manifest of `unit` in `directory`, for `read_manifest` to read when the unit is gone.

    Raises:
        OSError: a full disk, or any other failure; nothing was kept.
    """
    stage = staging / f"manifest-{uuid.uuid4().hex}"
    stage.mkdir(parents=True)
    try:
        _write_and_publish(unit, stage, directory, staging)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def discard(directory: Path, staging: Path) -> None:
    """Remove what is at `directory`, if anything: out of its place at once, then from the disk."""
    trash = _take_away(directory, staging)
    if trash:
        _remove(trash)


def _entries(directory: Path) -> set[str]:
    return {entry.name for entry in directory.iterdir()} if directory.is_dir() else set()


def _write_and_publish(unit: Unit, stage: Path, directory: Path, staging: Path) -> None:
    (stage / MANIFEST).write_text(manifest_text(unit))
    sync_tree(stage)
    _publish(stage, directory, staging)


def _publish(stage: Path, directory: Path, staging: Path) -> None:
    """Put the unit at `stage` in its place durably, or, if that fails, everything back."""
    top = Path(os.path.commonpath([directory, staging]))
    directory.parent.mkdir(parents=True, exist_ok=True)
    trash = _take_away(directory, staging)
    try:
        stage.rename(directory)
        # A killed writer may have made these directories without making them durable.
        for folder in directory.parents:
            sync(folder)
            if folder == top:
                break
    except BaseException:
        if directory.exists():
            directory.rename(stage)
        if trash:
            trash.rename(directory)
        raise
    if trash:
        with suppress(OSError):  # the new unit is in its place, whatever becomes of the old one
            _remove(trash)


def _take_away(directory: Path, staging: Path) -> Path | None:
    """Move what is at `directory` into the staging area; where it is now, if there was anything."""
    if not os.path.lexists(directory):
        return None
    staging.mkdir(parents=True, exist_ok=True)
    trash = staging / f"trash-{uuid.uuid4().hex}"
    directory.rename(trash)
    return trash


def _remove(trash: Path) -> None:
    """Remove a file, a link or a directory; what resists is left for `clear_staging`."""
    if trash.is_symlink() or not trash.is_dir():
        trash.unlink()
    else:
        shutil.rmtree(trash, ignore_errors=True)
