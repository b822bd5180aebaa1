"""Durable files and directories, and their removal."""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path


def sync(path: Path) -> None:
    """Fsync the file at `path`, or the entries of the directory at `path`."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(directory: Path) -> None:
    """Fsync everything below `directory`, and the directory itself last."""
    for folder, _, files in os.walk(directory, topdown=False, onerror=raise_error):
        for name in files:
            sync(Path(folder, name))
        sync(Path(folder))


def raise_error(error: OSError) -> None:
    """Let `os.walk` raise the errors that it would ignore."""
    raise error


def make_directories(directory: Path) -> None:
    """Create `directory` and its missing parents, and fsync each."""
    if directory.is_dir():
        return
    make_directories(directory.parent)
    directory.mkdir(exist_ok=True)
    sync(directory.parent)


def discard(directory: Path, staging: Path) -> None:
    """Remove what is at `directory`, if anything: one rename into `staging`, and then the removal there."""
    trash = move_to_trash(directory, staging)
    if trash:
        remove(trash)


def move_to_trash(directory: Path, staging: Path) -> Path | None:
    """Rename what is at `directory` into `staging`; returns its new path, or None if there was nothing."""
    if not os.path.lexists(directory):
        return None
    staging.mkdir(parents=True, exist_ok=True)
    trash = staging / f"trash-{uuid.uuid4().hex}"
    directory.rename(trash)
    return trash


def remove(trash: Path) -> None:
    """Remove a file, a link or a directory. `clear_staging` removes what cannot be removed here."""
    if trash.is_symlink() or not trash.is_dir():
        trash.unlink()
    else:
        shutil.rmtree(trash, ignore_errors=True)
