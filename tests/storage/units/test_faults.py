"""Faults of one commit: a kill or an error of the disk at every operation on files."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from watched_disk import CHANGES, NEEDS_ROOM, Act, Disk, Scene, commit, state, strays, worst

from dqn.envs.experience import Targets
from storage.durable import discard
from storage.formats.experience import read_targets, write_targets
from storage.units.local_store import LocalUnitStore
from storage.units.store import committing
from storage.units.unit import TARGETS, open_unit

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def test_harness_counts_every_operation(tmp_path: Path) -> None:
    names = Scene("replaced", tmp_path).operations()
    assert set(names) >= CHANGES - {"replace"} | {"open", "scandir", "stat", "lstat", "open to read", "read"}
    assert names.count("fsync") >= 3 + 3 + 1  # three files, three directories, and the one with the unit's name
    assert names.count("rename") == 2
    assert names.count("write") == 3


# ---------------------------------------------------------------- killed


def killed_at(root: Path, work: Callable[[Path], None], index: int) -> bool:
    """Run `work` in a process that is killed before operation `index`; False if `work` ends before that."""

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


def test_kill_at_any_operation_is_all_or_nothing(scene: Scene) -> None:
    # A unit that is being replaced is absent for a moment; its inputs have changed, so nothing needs it.
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


def test_kill_during_discard_is_all_or_nothing(tmp_path: Path) -> None:
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
    assert seen == sorted(seen, reverse=True)  # once removed, it stays removed


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


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=["ENOSPC", "EIO"])
def test_one_error_at_any_operation_is_undone(scene: Scene, code: int, tmp_path: Path) -> None:
    operations = scene.operations()
    for index in may_fail(operations, code):
        disk = Disk(scene.fresh())
        error = attempt(disk, refusing(code, index, for_good=False))
        # Only the removal of files that are no longer needed may fail silently.
        assert state(disk.root) == ("new" if error is None else scene.before), (index, operations[index], error)
        assert scene.others_intact(disk.root)
        if error is None:
            assert state(disk.after_power_loss(tmp_path / "after", worst)) == "new", (index, operations[index])
        assert attempt(disk, lambda index, name: None) is None
        assert state(disk.root) == "new"
        assert strays(disk.root) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=["ENOSPC", "EIO"])
def test_lasting_errors_leave_no_torn_unit(scene: Scene, code: int) -> None:
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
def test_failed_fsync_publishes_nothing(scene: Scene, for_good: bool, figure: Callable[[int, str, str], None]) -> None:
    fsyncs = [index for index, name in enumerate(scene.operations()) if name == "fsync"]
    for index in fsyncs:

        def act(number: int, name: str, index: int = index) -> None:
            if name == "fsync" and (number == index or (for_good and number > index)):
                raise OSError(errno.EIO, os.strerror(errno.EIO))

        disk = Disk(scene.fresh())
        error = attempt(disk, act)
        assert error is not None and error.errno == errno.EIO
        assert state(disk.root) == scene.before, f"fsync {fsyncs.index(index)} of {len(fsyncs)}"
    when = "and all after it" if for_good else "once"
    figure(6, f"each of {len(fsyncs)} fsyncs of a commit ({scene.name}) fails, {when}", "nothing published")


def test_full_disk_in_zarr_publishes_nothing(
    tmp_path: Path, make_targets: Callable[..., Targets], same: Callable[[object, object], bool]
) -> None:
    targets = make_targets()
    unit_path = Path("replay/targets/00001")

    def work(root: Path) -> None:
        with committing(
            LocalUnitStore(root / "replay/targets", root / "staging"), kind=TARGETS, cycle=1, inputs={}, made_by={}
        ) as draft:
            write_targets(draft.directory, targets)

    scene = Scene("first", tmp_path)
    operations = scene.operations(work)
    for index in may_fail(operations, errno.ENOSPC):
        root = scene.fresh()
        disk = Disk(root)
        error = attempt(disk, refusing(errno.ENOSPC, index, for_good=True), work)
        assert error is not None and error.errno == errno.ENOSPC, (index, operations[index])
        assert open_unit(root / unit_path) is None or "rename" in disk.trace[:index]
        work(root)
        unit = open_unit(root / unit_path)
        assert unit is not None and same(read_targets(unit.directory), targets)
