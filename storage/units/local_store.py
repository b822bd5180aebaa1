"""Units in a directory of this machine: staged, fsynced and renamed."""

from __future__ import annotations

import os
import shutil
import uuid
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from storage.durable import discard, remove, sync, sync_tree, take_away
from storage.units.store import UnitStore, cycles_in
from storage.units.unit import MANIFEST, Unit, cycle_name, manifest_text, open_unit


@dataclass(frozen=True)
class LocalUnitStore(UnitStore):
    """A directory of this machine; `staging` must be on the same file system."""

    directory: Path
    staging: Path

    def __str__(self) -> str:
        return str(self.directory)

    def __truediv__(self, name: str) -> LocalUnitStore:
        return LocalUnitStore(self.directory / name, self.staging)

    @property
    def url(self) -> str:
        """A file:// URL."""
        return self.directory.as_uri()

    def names(self) -> list[str]:
        """Names of all that is in the directory."""
        return sorted(_entries(self.directory))

    def version(self, cycle: int) -> str:
        """Always empty: the lock of the run excludes other writers."""
        return ""

    def publish(self, unit: Unit, version: str) -> Unit:
        """Fsync all of it, rename it, and fsync the directories that lead to it."""
        directory = self.directory / cycle_name(unit.cycle)
        _write_and_publish(unit, unit.directory, directory, self.staging)
        return replace(unit, directory=directory)

    def open(self, cycle: int, known: str = "", *, from_cache: bool = True) -> Unit | None:
        """The unit where it stands: there are no copies."""
        return open_unit(self.directory / cycle_name(cycle), known)

    def cycles(self) -> list[int]:
        """Numbers that are names in the directory."""
        return cycles_in(_entries(self.directory))

    def discard(self, cycle: int) -> None:
        """Rename it into the staging area, and remove it there."""
        discard(self.directory / cycle_name(cycle), self.staging)

    def put_file(self, name: str, file: Path) -> None:
        """Rename it."""
        (self.directory / name).parent.mkdir(parents=True, exist_ok=True)
        file.replace(self.directory / name)


def write_manifest(unit: Unit, directory: Path, staging: Path) -> None:
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
    trash = take_away(directory, staging)
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
            remove(trash)
