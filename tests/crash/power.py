"""The files of a training after a power loss: everything that was fsynced, and any part of the rest.

Files are identified by inode, so the file system must never reuse an inode number; tmpfs does not.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import CrashRun, phase_kind
from trainer import STAGES, Fault

from storage.units.unit import open_unit

BLOCK_BYTES = 4096  # the disk writes a block atomically

Choose = Callable[[list[Any]], Any]  # picks one of [the durable version, the version that programs saw]


@dataclass(frozen=True)
class Disk:
    """Directory entries and file contents by inode."""

    entries: dict[int, dict[str, int]]
    data: dict[int, bytes]

    @classmethod
    def read(cls, root: Path) -> Disk:
        """Everything below `root` as programs see it."""
        entries, data = {}, {}
        for folder, _, files in os.walk(root):
            inodes = entries[os.lstat(folder).st_ino] = {entry.name: entry.inode() for entry in os.scandir(folder)}
            data |= {inodes[name]: Path(folder, name).read_bytes() for name in files}
        return cls(entries, data)

    def with_synced(self, copies: Path) -> Disk:
        """This disk with everything that was fsynced since then; `faults.c` stores copies of that in `copies`."""
        entries, data = dict(self.entries), dict(self.data)
        for copy in copies.glob("*.names"):
            pairs = (line.split(" ", 1) for line in copy.read_text().splitlines())
            entries[int(copy.stem)] = {name: int(inode) for inode, name in pairs}
        data |= {int(copy.stem): copy.read_bytes() for copy in copies.glob("*.bytes")}
        return Disk(entries, data)


class PowerLoss:
    """A run whose machine loses power before operation number `at` on its files."""

    def __init__(self, run: CrashRun, at: int) -> None:
        run.reset()
        self._home, copies = run.home, run.home.with_name("durable")
        shutil.rmtree(copies, ignore_errors=True)
        copies.mkdir()
        before = Disk.read(self._home)
        child = run.start(Fault(at, copies=str(copies)))
        self._messages = child.messages()
        assert child.join() == -9
        self._durable, self._live = before.with_synced(copies), Disk.read(self._home)
        self._root = os.lstat(self._home).st_ino

    def restore(self, choose: Choose) -> None:
        """Replace the home with one of its possible states after the power loss."""
        shutil.rmtree(self._home)
        self._restore(self._root, self._home, choose)

    def lost_commits(self) -> list[str]:
        """Commits that were acknowledged before the power loss and that the home lacks now."""
        stages = [number for number, phase in enumerate(self._messages) if phase in STAGES]
        before_stage = self._messages[: stages[-1] if stages else 0]
        acknowledged = [phase for phase in before_stage if phase_kind(phase) == "commit"]
        if "commit checkpoint-00002" not in self._messages:
            acknowledged.append("commit checkpoint-00001")
        return [phase for phase in acknowledged if not self._is_committed(phase)]

    def _is_committed(self, phase: str) -> bool:
        kind, _, cycle = phase.removeprefix("commit ").rpartition("-")
        parent = "artifacts/*/*/artifacts/checkpoints" if kind == "checkpoint" else f"replay/*/{kind}"
        return any(open_unit(path) for path in self._home.glob(f"{parent}/{cycle}"))

    def _restore(self, inode: int, path: Path, choose: Choose) -> None:
        if inode not in {**self._durable.entries, **self._live.entries}:
            path.write_bytes(self._bytes(inode, choose))
            return
        path.mkdir()
        durable, live = (disk.entries.get(inode, {}) for disk in (self._durable, self._live))
        for name in sorted({*durable, *live}):
            chosen = choose([durable.get(name), live.get(name)])
            if chosen is not None:
                self._restore(chosen, path / name, choose)

    def _bytes(self, inode: int, choose: Choose) -> bytes:
        durable = self._durable.data.get(inode, b"")
        live = self._live.data.get(inode, durable)
        if durable == live:
            return live
        size = choose([len(durable), len(live)])
        blocks = []
        for start in range(0, size, BLOCK_BYTES):
            versions = [each[start : start + BLOCK_BYTES].ljust(BLOCK_BYTES, b"\0") for each in (durable, live)]
            blocks.append(choose(versions))
        return b"".join(blocks)[:size]
