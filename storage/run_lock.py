"""The lock of a run's writer in its home. It is a lock of the kernel, so it ends with the process that holds it.

Writers with other homes are excluded by storage.lease.
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from storage.errors import StorageError


@contextmanager
def one_writer(path: Path, what: str) -> Iterator[None]:
    """Hold the lock file at `path` of `what` during the block.

    Raises:
        StorageError: another process holds it; the message names that process.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        # `is_held` takes the lock briefly.
        if not lock(file, fcntl.LOCK_EX, seconds=1):
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise StorageError(f"{what} is being trained by {holder}; wait for it, stop it, or start one of your own")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        file.flush()
        yield


def is_held(path: Path) -> bool:
    """Whether a process holds the lock file at `path` now."""
    if not path.exists():
        return False
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def lock(file: IO[str], operation: int, seconds: float) -> bool:
    """Whether `file` could be locked within `seconds`; `operation` is fcntl.LOCK_EX or fcntl.LOCK_SH."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(file, operation | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        else:
            return True
