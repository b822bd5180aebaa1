"""What a power loss leaves of a training: what was fsynced, and of the rest anything or nothing.

Inodes tell which file is which, so this needs a file system that never uses one again, as tmpfs does.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import Laboratory, kind_of
from trainer import STAGES, Fault

from storage.units.unit import open_unit

BLOCK_BYTES = 4096  # what the disk writes whole or not at all

Pick = Callable[[list[Any]], Any]  # one of [what is durable, what programs saw]


@dataclass(frozen=True)
class Disk:
    """Entries of directories and bytes of files, by inode."""

    entries: dict[int, dict[str, int]]
    data: dict[int, bytes]

    @classmethod
    def read(cls, root: Path) -> Disk:
        """All below `root`, as programs see it."""
        entries, data = {}, {}
        for folder, _, files in os.walk(root):
            here = entries[os.lstat(folder).st_ino] = {entry.name: entry.inode() for entry in os.scandir(folder)}
            data |= {here[name]: Path(folder, name).read_bytes() for name in files}
        return cls(entries, data)

    def synced(self, copies: Path) -> Disk:
        """This one, with what was made durable since, of which `faults.c` kept copies."""
        entries, data = dict(self.entries), dict(self.data)
        for copy in copies.glob("*.names"):
            pairs = (line.split(" ", 1) for line in copy.read_text().splitlines())
            entries[int(copy.stem)] = {name: int(inode) for inode, name in pairs}
        data |= {int(copy.stem): copy.read_bytes() for copy in copies.glob("*.bytes")}
        return Disk(entries, data)


class PowerLoss:
    """A run whose machine loses power before the operation number `at` on its files."""

    def __init__(self, laboratory: Laboratory, at: int) -> None:
        laboratory.reset()
        self._home, copies = laboratory.home, laboratory.home.with_name("durable")
        shutil.rmtree(copies, ignore_errors=True)
        copies.mkdir()
        before = Disk.read(self._home)
        child = laboratory.start(Fault(at, keep=str(copies)))
        self._told = child.said()
        assert child.join() == -9
        self._durable, self._live = before.synced(copies), Disk.read(self._home)
        self._top = os.lstat(self._home).st_ino

    def leave(self, pick: Pick) -> None:
        """Make the home what is found afterwards."""
        shutil.rmtree(self._home)
        self._recover(self._top, self._home, pick)

    def lost(self) -> list[str]:
        """Commits that were acknowledged, or done before, and that are not there now."""
        stages = [number for number, phase in enumerate(self._told) if phase in STAGES]
        acknowledged = [phase for phase in self._told[: stages[-1] if stages else 0] if kind_of(phase) == "commit"]
        if "commit checkpoint-00002" not in self._told:
            acknowledged.append("commit checkpoint-00001")
        return [phase for phase in acknowledged if not self._is_there(phase)]

    def _is_there(self, phase: str) -> bool:
        kind, _, cycle = phase.removeprefix("commit ").rpartition("-")
        below = "artifacts/*/*/artifacts/checkpoints" if kind == "checkpoint" else f"replay/*/{kind}"
        return any(open_unit(place) for place in self._home.glob(f"{below}/{cycle}"))

    def _recover(self, inode: int, to: Path, pick: Pick) -> None:
        if inode not in {**self._durable.entries, **self._live.entries}:
            to.write_bytes(self._bytes(inode, pick))
            return
        to.mkdir()
        durable, live = (disk.entries.get(inode, {}) for disk in (self._durable, self._live))
        for name in sorted({*durable, *live}):
            chosen = pick([durable.get(name), live.get(name)])
            if chosen is not None:
                self._recover(chosen, to / name, pick)

    def _bytes(self, inode: int, pick: Pick) -> bytes:
        durable = self._durable.data.get(inode, b"")
        live = self._live.data.get(inode, durable)
        if durable == live:
            return live
        size = pick([len(durable), len(live)])
        blocks = []
        for start in range(0, size, BLOCK_BYTES):
            versions = [each[start : start + BLOCK_BYTES].ljust(BLOCK_BYTES, b"\0") for each in (durable, live)]
            blocks.append(pick(versions))
        return b"".join(blocks)[:size]
