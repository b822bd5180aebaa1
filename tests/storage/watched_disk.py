"""A model of a disk that observes every operation on files, and a commit for tests with it."""

from __future__ import annotations

import io
import os
import shutil
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dqn.metrics import Metric
from storage.errors import CorruptUnitError
from storage.units.local_store import LocalUnitStore
from storage.units.store import committing
from storage.units.unit import EXPERIENCE, open_unit

Act = Callable[[int, str], None]  # called with the number and the name of every operation before it runs

CHANGES = {"open to write", "write", "write the rest", "fsync", "mkdir", "rename", "replace", "unlink", "rmdir"}
NEEDS_ROOM = {"open to write", "write", "write the rest", "fsync", "mkdir", "rename", "replace"}
CALLS = ("mkdir", "rename", "replace", "unlink", "remove", "rmdir", "open", "scandir", "stat", "lstat")
REAL_OPEN = io.open
REAL = {name: getattr(os, name) for name in CALLS}


class Killed(BaseException):
    """Simulates the end of the process: every later operation raises it as well."""


class Disk:
    """Observes every operation on files in `watching`, and models what of `root` survives a power loss.

    An fsync makes durable the bytes of its file, or the names in its directory. Everything else may or may not
    survive a power loss, each name and each file independently.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.trace: list[str] = []
        self.ignored_fsync: int | None = None
        self._act: Act = lambda index, name: None
        self._within = threading.local()  # set while this class itself accesses files
        self._lock = threading.RLock()
        self._numbers: dict[int, int] = {}  # one for each file, because inodes are reused
        self._folders: set[int] = set()
        self._count = 0
        self._durable_names, self._durable_bytes = self._live()

    @contextmanager
    def watching(self, act: Act = lambda index, name: None) -> Iterator[None]:
        self.trace.clear()
        self._act = act
        with pytest.MonkeyPatch.context() as patch:
            for name, call in REAL.items():
                patch.setattr(os, name, self._watched(name, call))
            patch.setattr(os, "fsync", self._fsync)
            patch.setattr(io, "open", self._open)
            yield

    def step(self, name: str) -> None:
        if self._is_within():
            return
        with self._unwatched():
            self.trace.append(name)
            self._act(len(self.trace) - 1, name)

    def after_power_loss(self, to: Path, pick: Callable[[list[Any]], Any]) -> Path:
        """Write a possible state after a power loss to `to`; `pick` chooses from [durable, as programs see it, …]."""
        with self._unwatched():
            shutil.rmtree(to, ignore_errors=True)
            names, contents = self._live()
            self._recover(self._number(os.lstat(self.root)), to, names, contents, pick)
        return to

    def _is_within(self) -> bool:
        return getattr(self._within, "yes", False)

    @contextmanager
    def _unwatched(self) -> Iterator[None]:
        before = self._is_within()
        with self._lock:
            self._within.yes = True
            try:
                yield
            finally:
                self._within.yes = before

    def _watched(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            self.step("unlink" if name == "remove" else name)
            if name in ("open", "scandir", "stat", "lstat"):
                return call(*args, **kwargs)
            with self._unwatched():
                result = call(*args, **kwargs)
                self._look()
                return result

        return watched

    def _fsync(self, descriptor: int) -> None:
        self.step("fsync")
        if self.trace.count("fsync") - 1 == self.ignored_fsync:
            return
        with self._unwatched():
            self._look()
            found = os.fstat(descriptor)
            if stat.S_ISDIR(found.st_mode):
                self._durable_names[self._number(found)] = self._names(descriptor)
            else:
                self._durable_bytes[self._number(found)] = os.pread(descriptor, found.st_size, 0)

    def _open(
        self,
        file: Any,
        mode: str = "r",
        buffering: int = -1,
        encoding: Any = None,
        errors: Any = None,
        newline: Any = None,
        **others: Any,
    ) -> Any:
        if others:  # a temporary file without a name
            return REAL_OPEN(file, mode, buffering, encoding, errors, newline, **others)
        writes = not mode.startswith("r") or "+" in mode
        self.step("open to write" if writes else "open to read")
        with self._unwatched():
            raw = WatchedFile(self, file, mode.replace("b", "").replace("t", ""))
            if writes:
                self._look()
        if buffering == 0:
            return raw
        buffered = io.BufferedWriter(raw) if writes else io.BufferedReader(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding or "utf-8", errors, newline)

    def _number(self, found: os.stat_result) -> int:
        return self._numbers[found.st_ino]

    def _names(self, folder: Path | int) -> dict[str, int]:
        with os.scandir(folder) as entries:
            return {entry.name: self._numbers[entry.inode()] for entry in entries}

    def _look(self) -> None:
        """Number new files, and forget the inodes of removed ones."""
        seen = {os.lstat(self.root).st_ino: True}
        folders = [str(self.root)]
        while folders:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    seen[entry.inode()] = entry.is_dir(follow_symlinks=False)
                    if seen[entry.inode()]:
                        folders.append(entry.path)
        for inode in self._numbers.keys() - seen.keys():
            del self._numbers[inode]
        for inode in seen.keys() - self._numbers.keys():
            self._count += 1
            self._numbers[inode] = self._count
            if seen[inode]:
                self._folders.add(self._count)

    def _live(self) -> tuple[dict[int, dict[str, int]], dict[int, bytes]]:
        """Names in every directory and bytes of every file, as programs see them now."""
        self._look()
        names: dict[int, dict[str, int]] = {}
        contents: dict[int, bytes] = {}
        for folder, _, files in os.walk(self.root):
            entries = names[self._number(os.lstat(folder))] = self._names(Path(folder))
            contents |= {entries[name]: Path(folder, name).read_bytes() for name in files}
        return names, contents

    def _recover(self, number: int, to: Path, names: Any, contents: Any, pick: Callable[[list[Any]], Any]) -> None:
        if number in self._folders:
            to.mkdir()
            durable, live = self._durable_names.get(number, {}), names.get(number, {})
            for name in sorted({*durable, *live}):
                chosen = pick([durable.get(name), live.get(name)])
                if chosen is not None:
                    self._recover(chosen, to / name, names, contents, pick)
        else:
            durable_bytes = self._durable_bytes.get(number, b"")
            live_bytes = contents.get(number, durable_bytes)
            half = len(live_bytes) // 2
            torn = live_bytes[:half] + bytes(len(live_bytes) - half)
            to.write_bytes(pick([durable_bytes, live_bytes, live_bytes if live_bytes == durable_bytes else torn]))


class WatchedFile(io.FileIO):
    """A file that splits every write in two, so that a fault between them leaves a torn write."""

    def __init__(self, disk: Disk, file: Any, mode: str) -> None:
        super().__init__(file, mode)
        self._disk = disk

    def write(self, data: Any) -> int:
        half = len(memoryview(data)) // 2
        self._disk.step("write")
        super().write(memoryview(data)[:half])
        self._disk.step("write the rest")
        super().write(memoryview(data)[half:])
        return len(memoryview(data))

    def readinto(self, buffer: Any) -> Any:
        self._disk.step("read")
        return super().readinto(buffer)

    def readall(self) -> Any:
        self._disk.step("read")
        return super().readall()


# ---------------------------------------------------------------- a commit

OLD, NEW = b"old " * 99, b"new " * 100


def store_in(root: Path) -> LocalUnitStore:
    return LocalUnitStore(root / "replay" / "run" / "experience", root / "staging" / "run")


def commit(root: Path, cycle: int = 2, data: bytes = NEW) -> None:
    with committing(store_in(root), kind=EXPERIENCE, cycle=cycle, inputs={}, made_by={}) as draft:
        (draft.directory / "table").write_bytes(data)
        below = draft.directory / "array" / "c"
        below.mkdir(parents=True)
        (below / "0").write_bytes(data * 3)
        draft.metrics.append(Metric("loss", 1, 0.5))


def state(root: Path, cycle: int = 2) -> str:
    """The committed unit: none, old, new, or an error."""
    try:
        unit = open_unit(root / "replay" / "run" / "experience" / f"{cycle:05d}")
    except CorruptUnitError as error:
        return f"broken: {error}"
    if unit is None:
        return "none"
    data = (unit.directory / "table").read_bytes()
    assert (unit.directory / "array" / "c" / "0").read_bytes() == data * 3
    return {OLD: "old", NEW: "new"}[data]


def strays(root: Path) -> list[str]:
    """Files that belong to no unit and that the next writer does not remove."""
    store_in(root).clear_staging()
    folders = ["replay", "replay/run", "replay/run/experience", "staging"]
    units = [f"replay/run/experience/{cycle:05d}" for cycle in (1, 2)]
    found = {path.relative_to(root).as_posix() for path in root.rglob("*")} - {*folders, *units}
    return sorted(path for path in found if not path.startswith(tuple(f"{unit}/" for unit in units)))


class Scene:
    """A home before the tested commit: empty, with the unit of another cycle, or with a unit to be replaced."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self._directory = directory
        self._before = directory / "before"
        self._count = 0
        self._before.mkdir()
        if name != "first":
            commit(self._before, 1, OLD)
        if name == "replaced":
            commit(self._before, 2, OLD)
        self.before = state(self._before)

    def fresh(self) -> Path:
        shutil.rmtree(self._directory / f"home{self._count}", ignore_errors=True)
        self._count += 1
        return Path(shutil.copytree(self._before, self._directory / f"home{self._count}"))

    def operations(self, work: Callable[[Path], None] = commit) -> list[str]:
        disk = Disk(self.fresh())
        with disk.watching():
            work(disk.root)
        return list(disk.trace)

    def others_intact(self, root: Path) -> bool:
        return self.name == "first" or state(root, 1) == "old"


def worst(options: list[Any]) -> Any:
    """Only what is durable survives."""
    return options[0]
