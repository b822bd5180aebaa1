"""Committed units: directories that are complete and verified, or do not exist.

The manifest of a unit names every file with its size and SHA-256, so that damage is detected when the unit is opened.
The protocol of commits is in storage.units.store.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from dqn.metrics import Metric
from storage.durable import raise_error
from storage.errors import CorruptUnitError, NewerFormatError
from storage.format_version import check_format

MANIFEST = "manifest.json"
FORMAT = 1  # of manifests

# Errors while a file is parsed that is not a manifest
_PARSE_ERRORS = (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError)

_NAMES = ("experience", "targets", "checkpoint", "evaluation")
_SHARDED = ("experience", "targets")


@dataclass(frozen=True)
class UnitKind:
    """What a unit holds. Its text is part of manifests, directory names and input names.

    Args:
        name: experience, targets, checkpoint or evaluation.
        shard: number of the shard of lanes, of experience or targets of a run with several shards.
        protocol: text of the protocol of an evaluation; empty for the run's own protocol.
    """

    name: str
    shard: int | None = None
    protocol: str = ""

    @classmethod
    def parse(cls, text: str) -> UnitKind:
        """The inverse of `str`, for example of `experience-3` or `evaluation-Breakout-2x0.01-seed0`.

        Raises:
            ValueError: it is not the text of a kind.
        """
        name, _, rest = text.partition("-")
        if name in _SHARDED and rest.isdecimal():
            kind = cls(name, shard=int(rest))
        else:
            kind = cls(name, protocol=rest if name == "evaluation" else "")
        if name not in _NAMES or str(kind) != text:
            raise ValueError(f"{text!r} is not a kind of unit")
        return kind

    def __str__(self) -> str:
        if self.shard is not None:
            return f"{self.name}-{self.shard}"
        return f"{self.name}-{self.protocol}" if self.protocol else self.name

    def of_shards(self, shards: int) -> list[UnitKind]:
        """The kinds in which a run with that many shards stores this kind."""
        if shards == 1 or self.name not in _SHARDED:
            return [self]
        return [UnitKind(self.name, shard) for shard in range(shards)]


EXPERIENCE, TARGETS, CHECKPOINT, EVALUATION = map(UnitKind, _NAMES)
KINDS = (EXPERIENCE, TARGETS, CHECKPOINT)  # each cycle makes one unit of each


def kinds_in(names: Iterable[str]) -> list[UnitKind]:
    """Kinds of units whose texts are among `names`; other names are skipped."""
    kinds = []
    for name in names:
        with suppress(ValueError):
            kinds.append(UnitKind.parse(name))
    return kinds


@dataclass(frozen=True)
class Unit:
    """A committed unit."""

    directory: Path
    kind: UnitKind
    cycle: int
    inputs: dict[str, str]  # digests of the units that it was made from, by the text of their kind
    files: dict[str, tuple[int, str]]  # size in bytes and SHA-256 of each file, by its path below `directory`
    metrics: list[Metric]
    made: dict[str, Any]  # time, makers and speeds; not part of the digest

    @property
    def digest(self) -> str:
        """SHA-256 of everything that identifies the unit; place, time and maker are not part of it."""
        identity = [FORMAT, str(self.kind), self.cycle, self.inputs, self.files, self.metrics]
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

    def metric(self, name: str) -> float:
        """The last value of the metric `name`."""
        return [metric.value for metric in self.metrics if metric.name == name][-1]

    @property
    def speed(self) -> dict[str, float]:
        """States per second of each task that made the unit, by the task's name."""
        return {str(name): float(value) for name, value in self.made.get("speed", {}).items()}

    @property
    def created_ms(self) -> int:
        """Time of the commit in milliseconds since 1970."""
        return int(self.made["created_ms"])

    @property
    def bytes(self) -> int:
        """Total size of the files in bytes."""
        return sum(size for size, _ in self.files.values())


@dataclass
class Draft:
    """A unit before its commit: write files below `directory`, and add metrics and speeds."""

    directory: Path
    metrics: list[Metric] = field(default_factory=list)
    speed: dict[str, float] = field(default_factory=dict)
    _unit: Unit | None = None

    @property
    def unit(self) -> Unit:
        """The committed unit."""
        assert self._unit, "the unit is committed at the end of the block"
        return self._unit


def describe(draft: Draft, kind: UnitKind, cycle: int, inputs: Mapping[str, str], made_by: Mapping[str, str]) -> Unit:
    """The unit that consists of the files of a draft, with the current time."""
    return Unit(
        directory=draft.directory,
        kind=kind,
        cycle=cycle,
        inputs=dict(inputs),
        files={name: _size_and_digest(draft.directory / name) for name in _file_names(draft.directory)},
        metrics=[Metric(name, int(step), float(value)) for name, step, value in draft.metrics],
        made={"created_ms": time.time_ns() // 1_000_000, "by": dict(made_by), "speed": draft.speed},
    )


def open_unit(directory: Path, known: str = "") -> Unit | None:
    """The unit at `directory` after a check of all its files; None if there is none.

    If the digest of the unit is `known`, only its manifest is read, because the caller has the content of its files.

    Raises:
        CorruptUnitError: the unit does not match its manifest.
        NewerFormatError: a newer release committed it.
    """
    if not os.path.lexists(directory):
        return None
    unit = read_manifest(directory)
    if unit.digest != known:
        check_files(unit, str(directory))
    return unit


def check_files(unit: Unit, address: str) -> None:
    """Check every file in the directory of `unit` against its manifest.

    Raises:
        CorruptUnitError: a file differs. The message names it below `address`, which is where the unit is stored.
    """
    found = set(_file_names(unit.directory)) - {MANIFEST}
    for name in sorted(found ^ set(unit.files)):
        problem = "is not named by the manifest" if name in found else "is missing"
        raise CorruptUnitError(f"{address}/{name} {problem}")
    for name, expected in unit.files.items():
        if _size_and_digest(unit.directory / name) != expected:
            raise CorruptUnitError(f"{address}/{name} is not what was committed: its SHA-256 differs")


def cycle_name(cycle: int) -> str:
    """The name of a cycle's unit in a store: the number of the cycle with at least five digits."""
    return f"{cycle:05d}"


def manifest_text(unit: Unit, **more: str) -> str:
    """The manifest of `unit` as JSON, with `more` entries of its store."""
    manifest = {
        "format": FORMAT,
        "kind": str(unit.kind),
        "cycle": unit.cycle,
        "digest": unit.digest,
        "inputs": unit.inputs,
        "files": unit.files,
        "metrics": unit.metrics,
        "made": unit.made,
    }
    return json.dumps({**manifest, **more}, indent=1) + "\n"


def read_manifest(directory: Path) -> Unit:
    """The unit that the manifest in `directory` describes. Its files are not checked, and need not exist.

    Raises:
        CorruptUnitError: it is not a manifest, or was changed.
        NewerFormatError: a newer release wrote it.
    """
    path = directory / MANIFEST
    if directory.is_symlink() or path.is_symlink() or not path.is_file():
        raise CorruptUnitError(f"{path} is missing or not a plain file")
    return parse_manifest(path.read_bytes(), directory, str(path))[0]


def parse_manifest(text: bytes, directory: Path, address: str) -> tuple[Unit, dict[str, Any]]:
    """The unit that the manifest at `address` describes, with its files in `directory`; and the manifest itself.

    Raises:
        CorruptUnitError: it is not a manifest, or was changed.
        NewerFormatError: a newer release wrote it.
    """
    try:
        manifest = json.loads(text)
        _check_manifest_format(manifest, address)
        unit = _unit_in(manifest, directory)
        if unit.digest != manifest["digest"]:
            raise CorruptUnitError(f"{address} was changed after it was committed")
        if unit.created_ms <= 0:
            raise ValueError(f"it was made at {unit.created_ms}")
        _ = unit.speed  # numbers
    except _PARSE_ERRORS as error:
        raise CorruptUnitError(f"{address} is not a manifest: {error or 'unreadable'}") from None
    return unit, manifest


def _check_manifest_format(manifest: dict[str, Any], address: str) -> None:
    if missing := {"kind", "digest"} - set(manifest):  # manifests of every format have these
        raise ValueError(f"it has no {min(missing)}")
    try:
        check_format(manifest["format"], address, newest=FORMAT)
    except NewerFormatError:
        # The digest covers the format. If it matches this format, only the number was changed.
        with suppress(*_PARSE_ERRORS):
            if _unit_in(manifest, Path()).digest == manifest["digest"]:
                raise CorruptUnitError(f"{address} was changed after it was committed") from None
        raise


def _unit_in(manifest: dict[str, Any], directory: Path) -> Unit:
    return Unit(
        directory=directory,
        kind=UnitKind.parse(str(manifest["kind"])),
        cycle=int(manifest["cycle"]),
        inputs={str(kind): str(digest) for kind, digest in manifest["inputs"].items()},
        files={_safe(name): (int(size), str(sha)) for name, (size, sha) in manifest["files"].items()},
        metrics=[Metric(str(n), int(step), float(value)) for n, step, value in manifest["metrics"]],
        made=dict(manifest["made"]),
    )


def _safe(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or str(path) != name:
        raise ValueError(f"the file name {name!r} leads out of the unit")
    return name


def _file_names(directory: Path) -> list[str]:
    """Sorted POSIX paths of all files below `directory`. Links are refused."""
    names = []
    for folder, folders, files in os.walk(directory, onerror=raise_error):
        for name in folders + files:
            path = Path(folder, name)
            mode = path.lstat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise CorruptUnitError(f"{path} is a link or a device; a unit holds plain files only")
        names += [Path(folder, name).relative_to(directory).as_posix() for name in files]
    return sorted(names)


def _size_and_digest(path: Path) -> tuple[int, str]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return file.tell(), digest
