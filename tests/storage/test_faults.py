"""Faults around one commit: killed, refused by the disk, or the power gone, at every operation on files."""

from __future__ import annotations

import errno
import io
import os
import random
import shutil
import signal
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from dqn.experience import Targets
from dqn.statistics import Metric
from storage.errors import CorruptUnitError
from storage.experience import read_targets, write_targets
from storage.settings import Settings
from storage.units import clear_staging, committing, discard, open_unit

Act = Callable[[int, str], None]  # is told the number and the name of every operation before it is done

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

CHANGES = {"open to write", "write", "write the rest", "fsync", "mkdir", "rename", "replace", "unlink", "rmdir"}
NEEDS_ROOM = {"open to write", "write", "write the rest", "fsync", "mkdir", "rename", "replace"}
CALLS = ("mkdir", "rename", "replace", "unlink", "remove", "rmdir", "open", "scandir", "stat", "lstat")
REAL_OPEN = io.open
REAL = {name: getattr(os, name) for name in CALLS}


class Killed(BaseException):
    """Stands for the end of the process: every later operation raises it as well."""


class Disk:
    """Sees every operation on files in `watching`, and knows what of `root` a power loss would leave.

    What an fsync reported is durable: the bytes of that file, or the names in that directory. All
    else may be there or not after a power loss, each name and each file for itself.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.trace: list[str] = []
        self.ignored_fsync: int | None = None
        self._act: Act = lambda index, name: None
        self._within = threading.local()  # this class looks at files as well, and must not see itself
        self._lock = threading.RLock()
        self._numbers: dict[int, int] = {}  # of what each inode holds now; inodes are used again
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
        """Write to `to` what may be found afterwards; `pick` gets [what is durable, what was there, …]."""
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
        """Number what is new, and forget the inodes of what is gone."""
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
    """A file whose writes come in two halves, so that what happens between them tears them."""

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


# ---------------------------------------------------------------- the commit that is watched

OLD, NEW = b"old " * 99, b"new " * 100


def commit(root: Path, cycle: int = 2, data: bytes = NEW) -> None:
    directory = root / "replay" / "run" / "experience" / f"{cycle:05d}"
    with committing(
        directory, root / "staging" / "run", kind="experience", cycle=cycle, inputs={}, made_by={}
    ) as draft:
        (draft.directory / "table").write_bytes(data)
        below = draft.directory / "array" / "c"
        below.mkdir(parents=True)
        (below / "0").write_bytes(data * 3)
        draft.metrics.append(Metric("loss", 1, 0.5))


def state(root: Path, cycle: int = 2) -> str:
    """Which unit there is: none, old, new, or what is wrong with it."""
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
    """What is neither part of a unit nor cleared when the next writer begins."""
    clear_staging(root / "staging" / "run")
    folders = ["replay", "replay/run", "replay/run/experience", "staging"]
    units = [f"replay/run/experience/{cycle:05d}" for cycle in (1, 2)]
    found = {path.relative_to(root).as_posix() for path in root.rglob("*")} - {*folders, *units}
    return sorted(path for path in found if not path.startswith(tuple(f"{unit}/" for unit in units)))


class Scene:
    """A home before the watched commit: empty, with the unit of another cycle, or with one to be replaced."""

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


@pytest.fixture(params=["first", "next", "replaced"])
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Scene:
    return Scene(request.param, tmp_path)


def test_the_harness_sees_every_operation(tmp_path: Path) -> None:
    names = Scene("replaced", tmp_path).operations()
    assert set(names) >= CHANGES - {"replace"} | {"open", "scandir", "stat", "lstat", "open to read", "read"}
    assert names.count("fsync") >= 3 + 3 + 1  # three files, three directories, and the one with the unit's name
    assert names.count("rename") == 2
    assert names.count("write") == 3


# ---------------------------------------------------------------- killed


def killed_at(root: Path, work: Callable[[Path], None], index: int) -> bool:
    """Do `work` in a process that is killed before operation `index`; False if it finished before that."""

    def act(number: int, name: str) -> None:
        if number == index:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        code = 1
        try:
            with Disk(root).watching(act):
                work(root)
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def test_killed_at_any_operation_there_is_the_old_state_or_the_new(scene: Scene) -> None:
    # A unit that is replaced is out of its place for a moment; it was of no use any more.
    allowed = {"first": {"none", "new"}, "next": {"none", "new"}, "replaced": {"old", "none", "new"}}[scene.name]
    seen = []
    operations = scene.operations()
    for index, name in enumerate([*operations, "the end"]):
        if name not in CHANGES | {"the end"}:
            continue
        root = scene.fresh()
        assert killed_at(root, commit, index) == (name != "the end")
        seen.append(state(root))
        assert seen[-1] in allowed, (index, name)
        assert scene.others_intact(root)
        commit(root)
        assert state(root) == "new"
        assert strays(root) == []
    assert seen[0] == scene.before
    assert seen[-1] == "new"
    assert len(seen) > 15


def test_killed_while_discarding_a_unit_it_is_whole_or_gone(tmp_path: Path) -> None:
    scene = Scene("replaced", tmp_path)

    def work(root: Path) -> None:
        discard(root / "replay" / "run" / "experience" / "00002", root / "staging" / "run")

    seen = []
    for index, name in enumerate([*scene.operations(work), "the end"]):
        if name not in CHANGES | {"the end"}:
            continue
        root = scene.fresh()
        killed_at(root, work, index)
        seen.append(state(root))
        assert scene.others_intact(root)
        assert strays(root) == []
    assert set(seen) == {"old", "none"}
    assert seen == sorted(seen, reverse=True)  # once gone, it stays gone


# ---------------------------------------------------------------- full disk and I/O errors


def refusing(code: int, index: int, for_good: bool) -> Act:
    def act(number: int, name: str) -> None:
        refuses = number >= index if for_good else number == index
        if refuses and (code == errno.EIO or name in NEEDS_ROOM):
            raise OSError(code, os.strerror(code))

    return act


def attempt(disk: Disk, act: Act, work: Callable[[Path], None] = commit) -> OSError | None:
    with disk.watching(act):
        try:
            work(disk.root)
        except OSError as error:
            return error
    return None


def may_fail(operations: list[str], code: int) -> list[int]:
    return [index for index, name in enumerate(operations) if code == errno.EIO or name in NEEDS_ROOM]


def worst(options: list[Any]) -> Any:
    """Nothing is left but what is durable."""
    return options[0]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=["ENOSPC", "EIO"])
def test_after_one_error_at_any_operation_the_commit_is_told_and_undone_and_a_retry_succeeds(
    scene: Scene, code: int, tmp_path: Path
) -> None:
    operations = scene.operations()
    for index in may_fail(operations, code):
        disk = Disk(scene.fresh())
        error = attempt(disk, refusing(code, index, for_good=False))
        # Only what is cleared away without being asked about may fail in silence.
        assert state(disk.root) == ("new" if error is None else scene.before), (index, operations[index], error)
        assert scene.others_intact(disk.root)
        if error is None:
            assert state(disk.after_power_loss(tmp_path / "after", worst)) == "new", (index, operations[index])
        assert attempt(disk, lambda index, name: None) is None
        assert state(disk.root) == "new"
        assert strays(disk.root) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=["ENOSPC", "EIO"])
def test_after_errors_for_good_from_any_operation_nothing_is_torn_and_a_retry_succeeds(scene: Scene, code: int) -> None:
    operations = scene.operations()
    for index in may_fail(operations, code):
        if operations[index] not in CHANGES:
            continue
        disk = Disk(scene.fresh())
        error = attempt(disk, refusing(code, index, for_good=True))
        assert state(disk.root) in ({"new"} if error is None else {scene.before, "none", "new"}), (index, error)
        assert error is None or error.errno == code
        assert scene.others_intact(disk.root)
        assert attempt(disk, lambda index, name: None) is None
        assert state(disk.root) == "new"
        assert strays(disk.root) == []


@pytest.mark.parametrize("for_good", [False, True], ids=["once", "for good"])
def test_after_a_failed_fsync_nothing_of_that_attempt_is_published(scene: Scene, for_good: bool) -> None:
    fsyncs = [index for index, name in enumerate(scene.operations()) if name == "fsync"]
    for index in fsyncs:

        def act(number: int, name: str, index: int = index) -> None:
            if name == "fsync" and (number == index or (for_good and number > index)):
                raise OSError(errno.EIO, os.strerror(errno.EIO))

        disk = Disk(scene.fresh())
        error = attempt(disk, act)
        assert error is not None and error.errno == errno.EIO
        assert state(disk.root) == scene.before, f"fsync {fsyncs.index(index)} of {len(fsyncs)}"


def test_a_full_disk_while_zarr_writes_is_told_and_nothing_is_published(
    tmp_path: Path, make_targets: Callable[..., Targets], same: Callable[[object, object], bool]
) -> None:
    targets = make_targets()
    place = Path("replay/targets/00001")

    def work(root: Path) -> None:
        with committing(root / place, root / "staging", kind="targets", cycle=1, inputs={}, made_by={}) as draft:
            write_targets(draft.directory, targets)

    scene = Scene("first", tmp_path)
    operations = scene.operations(work)
    for index in may_fail(operations, errno.ENOSPC):
        root = scene.fresh()
        disk = Disk(root)
        error = attempt(disk, refusing(errno.ENOSPC, index, for_good=True), work)
        assert error is not None and error.errno == errno.ENOSPC, (index, operations[index])
        assert open_unit(root / place) is None or "rename" in disk.trace[:index]
        work(root)
        unit = open_unit(root / place)
        assert unit is not None and same(read_targets(unit.directory), targets)


# ---------------------------------------------------------------- power loss


def recoveries(disk: Disk, to: Path, seed: int, samples: int = 2) -> Iterator[Path]:
    """What may be found after a power loss now: only what is durable, all there was, or some of it."""
    yield disk.after_power_loss(to, worst)
    yield disk.after_power_loss(to, lambda options: options[1])
    for sample in range(samples):
        yield disk.after_power_loss(to, random.Random(f"{seed} {sample}").choice)


def test_power_loss_at_any_operation_leaves_the_old_state_or_the_new(scene: Scene, tmp_path: Path) -> None:
    disk = Disk(scene.fresh())
    seen = set()

    def lose_power(index: int, name: str) -> None:
        if name not in CHANGES:
            return
        for found in recoveries(disk, tmp_path / "after", index):
            now = state(found)
            seen.add(now)
            # Of a unit that is being removed, files may be gone before its name is; that is noticed.
            torn = scene.name == "replaced" and now.startswith("broken")
            assert torn or now in {scene.before, "none", "new"}, (index, name)
            assert scene.others_intact(found)

    with disk.watching(lose_power):
        commit(disk.root)
    assert {scene.before, "new"} <= seen


def test_a_commit_that_returned_survives_power_loss(scene: Scene, tmp_path: Path) -> None:
    disk = Disk(scene.fresh())
    with disk.watching():
        commit(disk.root)
    for found in recoveries(disk, tmp_path / "after", 0, samples=50):
        assert state(found) == "new"
        assert scene.others_intact(found)


def test_without_any_one_of_its_fsyncs_a_commit_would_not_survive_power_loss(tmp_path: Path) -> None:
    scene = Scene("first", tmp_path)
    count = scene.operations().count("fsync")
    assert count == 3 + 3 + 3 + 1  # files, their directories, three new parents, and the unit's name
    for ignored in range(count):
        disk = Disk(scene.fresh())
        disk.ignored_fsync = ignored
        with disk.watching():
            commit(disk.root)
        assert state(disk.root) == "new"
        assert state(disk.after_power_loss(tmp_path / "after", worst)) != "new", f"fsync {ignored} is not needed"


@pytest.mark.parametrize("fault", ["killed", "fsync fails"])
def test_what_an_earlier_attempt_left_does_not_weaken_the_next(tmp_path: Path, fault: str) -> None:
    scene = Scene("first", tmp_path)
    operations = scene.operations()
    for index, name in enumerate(operations):
        if name != "fsync" and fault == "fsync fails":
            continue

        def act(number: int, name: str, index: int = index) -> None:
            if fault == "killed" and number >= index:
                raise Killed
            if number == index:
                raise OSError(errno.EIO, os.strerror(errno.EIO))

        disk = Disk(scene.fresh())
        with disk.watching(act), suppress(Killed, OSError):
            commit(disk.root)
        with disk.watching():
            commit(disk.root)
        assert state(disk.after_power_loss(tmp_path / "after", worst)) == "new", (index, name)


def test_the_first_commit_in_a_new_home_survives_power_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(Scene("first", tmp_path).fresh())
    monkeypatch.setenv("DQN_HOME", str(disk.root / "new" / "home"))
    with disk.watching():
        settings = Settings.from_environment()
        commit(settings.home)
    found = disk.after_power_loss(tmp_path / "after", worst)
    assert state(found / "new" / "home") == "new"


def test_power_loss_while_discarding_a_unit_is_noticed(tmp_path: Path) -> None:
    scene = Scene("replaced", tmp_path)
    disk = Disk(scene.fresh())

    def lose_power(index: int, name: str) -> None:
        if name not in CHANGES:
            return
        for found in recoveries(disk, tmp_path / "after", index):
            now = state(found)
            assert now in {"old", "none"} or now.startswith("broken")
            assert scene.others_intact(found)

    with disk.watching(lose_power):
        discard(disk.root / "replay" / "run" / "experience" / "00002", disk.root / "staging" / "run")
