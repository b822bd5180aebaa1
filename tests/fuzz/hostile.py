"""Reads changed files in a process of its own and reports every one that was not answered in one line.

    python tests/fuzz/hostile.py INPUTS [FIRST [READER,READER]]

reads the inputs FIRST, FIRST + 1, … of each reader, or of the readers that are named. An input depends on its number
alone, so that one that failed can be read again. The process may allocate 1 GB more than it had before the first
input. It is denied other processes, connections, pickles and writes outside its directory.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import sqlite3
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}

from readers import READERS, alter_one_file

from dqn.config import FieldError
from storage.errors import StorageError, as_line

SECONDS, BYTES = 10, 2**30  # for one input
SLOW_SHARE = 10  # a slow reader reads one in so many of its inputs, and none of fewer than 100
DENIED = (
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "pickle.find_class",
    "socket.connect",
)


def problem_of(error: BaseException) -> str:
    """What is wrong with the answer to an input; empty for one clear line."""
    if not isinstance(error, StorageError) and type(error) not in (ValueError, FieldError):
        return f"{type(error).__name__} is neither a mistake of the caller nor of storage"
    # Of a ValueError, `as_line` is what the command line prints.
    if "\n" in str(error) or not as_line(str(error)).isprintable():
        return "the message is not one line of text"
    return "" if str(error) else "there is no message"


class Forbidden(BaseException):
    """Something that reading a file must not do."""


class Guard:
    """Denies what reading a file must not do, while it is switched on."""

    def __init__(self) -> None:
        self.allowed: tuple[str, ...] = ()
        self.on = False
        self.violations: list[str] = []
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event in DENIED or (event == "open" and self._writes_elsewhere(*arguments)):
            self.violations.append(f"{event} {str(arguments)[:200]}")
            raise Forbidden(f"{event} {arguments}")

    def _writes_elsewhere(self, path: object, mode: object, flags: int) -> bool:
        writes = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))
        where = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else ""
        return writes and bool(where) and not os.path.realpath(where).startswith(self.allowed)


@contextmanager
def time_limit() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise Forbidden(f"took more than {SECONDS} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)


def limit_memory() -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGESIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + BYTES, resource.RLIM_INFINITY))


def restore(original: Path, directory: Path) -> None:
    """Make the files of `directory` those of `original`. A database is restored below its open connections."""
    if (directory / "mlflow.db").exists():
        with (
            closing(sqlite3.connect(original / "mlflow.db")) as source,
            closing(sqlite3.connect(directory / "mlflow.db")) as to,
        ):
            source.backup(to)
        return
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(original, directory)


def failures(name: str, inputs: range, guard: Guard) -> Iterator[dict[str, Any]]:
    """Each of the inputs that was not answered as it must be, with the reason."""
    reader = READERS[name]
    with tempfile.TemporaryDirectory(prefix="dqn-fuzz-") as temporary:
        original, directory = Path(temporary) / "original", Path(temporary) / "read"
        original.mkdir()
        os.environ["DQN_HOME"] = str(directory) if name == "store" else str(Path(temporary) / "home")
        if name == "store":  # its paths are absolute
            directory.mkdir()
            reader.write(directory)
            shutil.copytree(directory, original, dirs_exist_ok=True)
        else:
            reader.write(original)
        guard.allowed = (temporary, "/dev/null")
        for number in [-1, *inputs]:  # -1 is unchanged
            restore(original, directory)
            draws = random.Random(f"{name} {number}")
            if number >= 0:
                (reader.alter or alter_one_file)(directory, draws)
            problem = trace = ""
            try:
                with time_limit():
                    guard.on = number >= 0  # for the first one, numba reads its cache
                    reader.read(directory)
            except BaseException as error:  # noqa: BLE001 - whatever is raised is judged
                guard.on = False
                trace = "".join(traceback.format_exception(error))
                problem = problem_of(error) if number >= 0 else f"an unchanged file is not read: {error}"
            finally:
                guard.on = False
            if guard.violations:
                problem = f"did what is forbidden: {guard.violations.pop()}"
            if problem:
                yield {"reader": name, "input": number, "problem": problem, "trace": trace[-1500:]}
            if number == -1:
                limit_memory()


def main(count: str, first: str = "0", names: str = "") -> None:
    """Print each failure, and at last the number of all inputs that were read."""
    guard, total = Guard(), 0
    for name in names.split(",") if names else READERS:
        inputs = range(int(first), int(first) + int(count))
        if READERS[name].is_slow:
            inputs = inputs[: len(inputs) // SLOW_SHARE] if len(inputs) >= 100 else inputs[:0]
        total += len(inputs)
        if inputs:
            for failure in failures(name, inputs, guard):
                print(json.dumps(failure), flush=True)
    print(total)


if __name__ == "__main__":
    main(*sys.argv[1:])
