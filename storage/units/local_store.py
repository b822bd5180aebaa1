"""Units in a directory of a file system: staged, fsynced and renamed."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from storage.durable import discard, move_to_trash, remove, sync, sync_tree
from storage.errors import StorageError
from storage.run_lock import lock
from storage.units.store import Fence, UnitStore, cycles_in
from storage.units.unit import MANIFEST, Unit, cycle_name, manifest_text, open_unit

RECORD_LOCK_SECONDS = 60.0  # a process holds it for two renames, unless it is stopped in that time


@dataclass(frozen=True)
class LocalUnitStore(UnitStore):
    """A directory that holds units; `staging` must be on the same file system."""

    directory: Path
    staging: Path

    def __str__(self) -> str:
        return str(self.directory)

    def __truediv__(self, name: str) -> LocalUnitStore:
        return LocalUnitStore(self.directory / name, self.staging)

    @property
    def url(self) -> str:
        """The file:// URL of the directory."""
        return self.directory.as_uri()

    def names(self) -> list[str]:
        """Names of all entries of the directory."""
        return sorted(_entries(self.directory))

    def version(self, cycle: int) -> str:
        """Always empty: the lock of the run excludes other writers."""
        return ""

    def publish(self, unit: Unit, version: str, fence: Fence = nullcontext) -> Unit:
        """Fsync all files of `unit`, rename its directory, and fsync the parent directories."""
        directory = self.directory / cycle_name(unit.cycle)
        _write_and_publish(unit, unit.directory, directory, self.staging, fence)
        return replace(unit, directory=directory)

    def open(self, cycle: int, known: str = "", *, from_cache: bool = True) -> Unit | None:
        """The unit in the store itself; there is no cache."""
        return open_unit(self.directory / cycle_name(cycle), known)

    def cycles(self) -> list[int]:
        """Numbers of the cycles that have an entry, newest first."""
        return cycles_in(_entries(self.directory))

    def discard(self, cycle: int) -> None:
        """Rename the unit into `staging`, and remove it there."""
        discard(self.directory / cycle_name(cycle), self.staging)

    def put_file(self, name: str, file: Path) -> None:
        """Rename `file`."""
        (self.directory / name).parent.mkdir(parents=True, exist_ok=True)
        file.replace(self.directory / name)

    def read_record(self, name: str) -> tuple[bytes, str]:
        """The content of the file, and its SHA-256 as the version."""
        try:
            text = (self.directory / name).read_bytes()
        except FileNotFoundError:
            return b"", ""
        return text, hashlib.sha256(text).hexdigest()

    def write_record(self, name: str, text: bytes, version: str) -> str:
        """Write another file, and rename it while a lock of the kernel excludes other writers."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with self._lock(fcntl.LOCK_EX):
            if self.read_record(name)[1] != version:
                return ""
            # No unique name: the file of a killed process is overwritten by the next one. No fsync: what a power
            # loss undoes or tears was written by a process that it ended.
            staged = self.directory / f"{name}.new"
            staged.write_bytes(text)
            staged.rename(self.directory / name)
            return hashlib.sha256(text).hexdigest()

    @contextmanager
    def records_locked(self) -> Iterator[None]:
        """Share the lock that `write_record` needs for itself."""
        if not self.directory.is_dir():
            yield
            return
        with self._lock(fcntl.LOCK_SH):
            yield

    @contextmanager
    def _lock(self, operation: int) -> Iterator[None]:
        path = self.directory / "lock"
        with path.open("a+") as file:
            if not lock(file, operation, RECORD_LOCK_SECONDS):
                raise StorageError(
                    f"another process has held {path} for a minute; if it is stopped, continue or end it"
                )
            yield


def write_manifest(unit: Unit, directory: Path, staging: Path) -> None:
    """Write the manifest of `unit` into `directory`, where `read_manifest` finds it when the unit is gone.

    Raises:
        OSError: a full disk, or any other failure; nothing was written.
    """
    stage = staging / f"manifest-{uuid.uuid4().hex}"
    stage.mkdir(parents=True)
    try:
        _write_and_publish(unit, stage, directory, staging)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _entries(directory: Path) -> set[str]:
    return {entry.name for entry in directory.iterdir()} if directory.is_dir() else set()


def _write_and_publish(unit: Unit, stage: Path, directory: Path, staging: Path, fence: Fence = nullcontext) -> None:
    (stage / MANIFEST).write_text(manifest_text(unit))
    sync_tree(stage)
    _publish(stage, directory, staging, fence)


def _publish(stage: Path, directory: Path, staging: Path, fence: Fence) -> None:
    """Rename `stage` to `directory` durably; if that fails, restore what was there before."""
    top = Path(os.path.commonpath([directory, staging]))
    directory.parent.mkdir(parents=True, exist_ok=True)
    trash, renamed = None, False
    try:
        with fence():
            trash = move_to_trash(directory, staging)
            stage.rename(directory)
            renamed = True
        # A killed writer may have created these directories without an fsync.
        for folder in directory.parents:
            sync(folder)
            if folder == top:
                break
    except BaseException:
        if renamed:
            directory.rename(stage)
        if trash:
            trash.rename(directory)
        raise
    if trash:
        with suppress(OSError):  # the new unit is committed, whether or not the old one can be removed
            remove(trash)
