"""Making files and directories durable."""

from __future__ import annotations

import os
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
