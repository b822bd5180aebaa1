"""Committed units: directories that exist whole and verified, or not at all.

A unit is staged under a unique name, every file and directory of it is fsynced, and one rename
publishes it. Its manifest names every file with its size and SHA-256, so that whatever happens to it
later is noticed when it is opened.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from dqn.statistics import Metric
from storage.errors import CorruptUnitError
from storage.files import fail, sync, sync_tree

MANIFEST = "manifest.json"
FORMAT = 1


@dataclass(frozen=True)
class Unit:
    """A committed unit whose files were found to match its manifest."""

    directory: Path
    kind: str
    cycle: int
    inputs: dict[str, str]  # digests of the units it was made from, by kind
    files: dict[str, tuple[int, str]]  # size in bytes and SHA-256 of each
    metrics: list[Metric]
    made: dict[str, Any]  # when, by what and how fast; not part of the digest

    @property
    def digest(self) -> str:
        """SHA-256 over all that the unit is, wherever, whenever and by whom it was made."""
        what = [FORMAT, self.kind, self.cycle, self.inputs, self.files, self.metrics]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()

    def metric(self, name: str) -> float:
        """The newest value of one of its metrics."""
        return [metric.value for metric in self.metrics if metric.name == name][-1]

    @property
    def speed(self) -> dict[str, float]:
        """How fast it was made, by what was done."""
        return {str(name): float(value) for name, value in self.made.get("speed", {}).items()}

    @property
    def created_ms(self) -> int:
        """When it was committed, in milliseconds since 1970."""
        return int(self.made["created_ms"])

    @property
    def bytes(self) -> int:
        """Size of its files together."""
        return sum(size for size, _ in self.files.values())


@dataclass
class Draft:
    """A unit in the making: write files below `directory`, add metrics and speeds."""

    directory: Path
    metrics: list[Metric] = field(default_factory=list)
    speed: dict[str, float] = field(default_factory=dict)
    _unit: Unit | None = None

    @property
    def unit(self) -> Unit:
        """What came of it, once it was committed."""
        assert self._unit, "the unit is committed when the block ends"
        return self._unit


@contextmanager
def committing(
    directory: Path,
    staging: Path,
    *,
    kind: str,
    cycle: int,
    inputs: Mapping[str, str],
    made_by: Mapping[str, str],
) -> Iterator[Draft]:
    """Commit what the block writes as the unit at `directory`, or nothing if anything fails.

    A unit that stands there already is replaced. `staging` must be on the same file system.

    Raises:
        OSError: a full disk, or any other failure to write or to fsync; nothing was published.
    """
    stage = staging / f"{kind}-{cycle:05d}-{uuid.uuid4().hex}"
    stage.mkdir(parents=True)
    try:
        draft = Draft(stage)
        yield draft
        unit = Unit(
            directory=directory,
            kind=kind,
            cycle=cycle,
            inputs=dict(inputs),
            files={name: _size_and_digest(stage / name) for name in _file_names(stage)},
            metrics=[Metric(name, int(step), float(value)) for name, step, value in draft.metrics],
            made={"created_ms": time.time_ns() // 1_000_000, "by": dict(made_by), "speed": draft.speed},
        )
        (stage / MANIFEST).write_text(_manifest_text(unit))
        sync_tree(stage)
        _publish(stage, directory, staging)
        draft._unit = unit
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _publish(stage: Path, directory: Path, staging: Path) -> None:
    """Put the unit at `stage` in its place durably, or, if that fails, everything back."""
    top = Path(os.path.commonpath([directory, staging]))
    directory.parent.mkdir(parents=True, exist_ok=True)
    trash = _take_away(directory, staging)
    try:
        stage.rename(directory)
        # A killed writer may have made these directories without making them durable.
        for folder in directory.parents:
            sync(folder)
            if folder == top:
                break
    except BaseException:
        if directory.exists():
            directory.rename(stage)
        if trash:
            trash.rename(directory)
        raise
    if trash:
        with suppress(OSError):  # the new unit is in its place, whatever becomes of the old one
            _remove(trash)


def open_unit(directory: Path, known: str = "") -> Unit | None:
    """The unit at `directory` after checking every file of it, or None where there is none.

    Of a unit whose digest is `known` only the manifest is read: the caller has at hand what is in its files.

    Raises:
        CorruptUnitError: the unit does not match its manifest.
    """
    if not os.path.lexists(directory):
        return None
    unit = read_manifest(directory)
    if unit.digest == known:
        return unit
    found = set(_file_names(directory)) - {MANIFEST}
    for name in sorted(found ^ set(unit.files)):
        problem = "is not named by the manifest" if name in found else "is missing"
        raise CorruptUnitError(f"{directory / name} {problem}")
    for name, expected in unit.files.items():
        if _size_and_digest(directory / name) != expected:
            raise CorruptUnitError(f"{directory / name} is not what was committed: its SHA-256 differs")
    return unit


def keep_manifest(unit: Unit, directory: Path, staging: Path) -> None:
    """Keep a copy of the manifest of `unit` in `directory`, for `read_manifest` to read when the unit is gone.

    Raises:
        OSError: a full disk, or any other failure; nothing was kept.
    """
    stage = staging / f"manifest-{uuid.uuid4().hex}"
    stage.mkdir(parents=True)
    try:
        (stage / MANIFEST).write_text(_manifest_text(unit))
        sync_tree(stage)
        _publish(stage, directory, staging)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def discard(directory: Path, staging: Path) -> None:
    """Remove the unit at `directory`, if any: out of its place at once, then from the disk."""
    trash = _take_away(directory, staging)
    if trash:
        _remove(trash)


def _take_away(directory: Path, staging: Path) -> Path | None:
    """Move what is at `directory` into the staging area; where it is now, if there was anything."""
    if not os.path.lexists(directory):
        return None
    staging.mkdir(parents=True, exist_ok=True)
    trash = staging / f"trash-{uuid.uuid4().hex}"
    directory.rename(trash)
    return trash


def _remove(trash: Path) -> None:
    """Remove a file, a link or a directory; what resists is left for `clear_staging`."""
    if trash.is_symlink() or not trash.is_dir():
        trash.unlink()
    else:
        shutil.rmtree(trash, ignore_errors=True)


def cycles_in(directory: Path) -> list[int]:
    """Numbers of the cycles that have a unit below `directory`, newest first."""
    if not directory.is_dir():
        return []
    names = {entry.name for entry in directory.iterdir() if re.fullmatch("[0-9]{5,18}", entry.name)}
    return sorted((int(name) for name in names if name == cycle_name(int(name))), reverse=True)


def cycle_name(cycle: int) -> str:
    """The name of a cycle's unit in the directory of its kind."""
    return f"{cycle:05d}"


def clear_staging(staging: Path) -> None:
    """Remove what killed writers left behind; only the run's one writer may."""
    shutil.rmtree(staging, ignore_errors=True)


def _manifest_text(unit: Unit) -> str:
    manifest = {
        "format": FORMAT,
        "kind": unit.kind,
        "cycle": unit.cycle,
        "digest": unit.digest,
        "inputs": unit.inputs,
        "files": unit.files,
        "metrics": unit.metrics,
        "made": unit.made,
    }
    return json.dumps(manifest, indent=1) + "\n"


def read_manifest(directory: Path) -> Unit:
    """What the manifest in `directory` says, whether the unit's files are there or not.

    Raises:
        CorruptUnitError: it is not a manifest, or was changed.
    """
    path = directory / MANIFEST
    if directory.is_symlink() or path.is_symlink() or not path.is_file():
        raise CorruptUnitError(f"{path} is missing or not a plain file")
    try:
        manifest = json.loads(path.read_bytes())
        if manifest["format"] != FORMAT:
            raise CorruptUnitError(f"{path} has format {manifest['format']}; this version reads {FORMAT}")
        unit = Unit(
            directory=directory,
            kind=str(manifest["kind"]),
            cycle=int(manifest["cycle"]),
            inputs={str(kind): str(digest) for kind, digest in manifest["inputs"].items()},
            files={_safe(name): (int(size), str(sha)) for name, (size, sha) in manifest["files"].items()},
            metrics=[Metric(str(n), int(step), float(value)) for n, step, value in manifest["metrics"]],
            made=dict(manifest["made"]),
        )
        if unit.digest != manifest["digest"]:
            raise CorruptUnitError(f"{path} was changed after it was committed")
        if unit.created_ms <= 0:
            raise ValueError(f"it was made at {unit.created_ms}")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise CorruptUnitError(f"{path} is not a manifest: {error or 'unreadable'}") from None
    return unit


def _safe(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or str(path) != name:
        raise ValueError(f"the file name {name!r} leads out of the unit")
    return name


def _file_names(directory: Path) -> list[str]:
    """Posix paths of all files below `directory`, sorted; links are never followed."""
    names = []
    for folder, folders, files in os.walk(directory, onerror=fail):
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
