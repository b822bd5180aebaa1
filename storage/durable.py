"""Making files and directories durable, and removing them."""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path


def sync(path: Path) -> None:
    """Make the file, or the entries of the directory, at `path` durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(directory: Path) -> None:
    """Make everything below `directory` durable, the deepest first."""
    for folder, _, files in os.walk(directory, topdown=False, onerror=fail):
        for name in files:
            sync(Path(folder, name))
        sync(Path(folder))


def fail(error: OSError) -> None:
    """Let `os.walk` raise what it would pass over."""
    raise error


def make_directories(directory: Path) -> None:
    """Make `directory` and the parents it lacks, each one durable."""
    if directory.is_dir():
        return
    make_directories(directory.parent)
    directory.mkdir(exist_ok=True)
    sync(directory.parent)


def discard(directory: Path, staging: Path) -> None:
    """Remove what is at `directory`, if anything: out of its place at once, then from the disk."""
    trash = take_away(directory, staging)
    if trash:
        remove(trash)


def take_away(directory: Path, staging: Path) -> Path | None:
    """Move what is at `directory` into the staging area; where it is now, if there was anything."""
    if not os.path.lexists(directory):
        return None
    staging.mkdir(parents=True, exist_ok=True)
    trash = staging / f"trash-{uuid.uuid4().hex}"
    directory.rename(trash)
    return trash


def remove(trash: Path) -> None:
    """Remove a file, a link or a directory; what resists is left for `clear_staging`."""
    if trash.is_symlink() or not trash.is_dir():
        trash.unlink()
    else:
        shutil.rmtree(trash, ignore_errors=True)
