"""Damage to files of committed units. CORRUPTIONS sets the number of flipped bits."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from dqn.checkpoint import Checkpoint
from dqn.envs.experience import Experience, Targets
from dqn.metrics import Metric
from storage.errors import CorruptUnitError
from storage.formats.checkpoint import read_checkpoint, write_checkpoint
from storage.formats.experience import read_experience, read_targets, write_experience, write_targets
from storage.units.local_store import LocalUnitStore
from storage.units.store import committing
from storage.units.unit import MANIFEST, TARGETS, Draft, Unit, UnitKind, open_unit

CORRUPTIONS = int(os.environ.get("CORRUPTIONS", "200"))
KINDS = ["experience", "targets", "checkpoint"]

UNNOTICED = "0 unnoticed; the error names the file"

Tell = Callable[[int, str, str], None]
Write = Callable[[Draft], None]
Read = Callable[[Path], object]


@dataclass(frozen=True)
class Committed:
    """A committed unit, its values, and functions that read and compare them."""

    unit: Unit
    values: object
    read: Read
    same: Callable[[object, object], bool]
    files: dict[str, bytes]
    damaged: set[str]

    def damage(self, name: str, data: bytes | None) -> None:
        self.damaged.add(name)
        path = self.unit.directory / name
        path.unlink() if data is None else path.write_bytes(data)

    def repair(self) -> None:
        while self.damaged:
            name = self.damaged.pop()
            (self.unit.directory / name).write_bytes(self.files[name])

    def noticed(self, *names: str) -> bool:
        """Whether opening the unit raises an error that names one of the files, or all values are unchanged.

        Only a manifest can change harmlessly: in its white space, or in entries that are not part of the digest.
        """
        try:
            unit = open_unit(self.unit.directory)
        except CorruptUnitError as error:
            # A changed manifest may name another file, which is then reported as missing.
            return MANIFEST in names or any(str(self.unit.directory / name) in str(error) for name in names)
        assert unit is not None
        unharmed = {name: data for name, data in self.files.items() if name != MANIFEST} == {
            name: (unit.directory / name).read_bytes() for name in unit.files
        }
        return (
            unharmed
            and (unit.digest, unit.metrics, unit.inputs) == (self.unit.digest, self.unit.metrics, self.unit.inputs)
            and self.same(self.read(unit.directory), self.values)
        )


@pytest.fixture(scope="module", params=KINDS)
def committed(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    make_experience: Callable[..., Experience],
    make_targets: Callable[..., Targets],
    make_checkpoint: Callable[..., Checkpoint],
    same: Callable[[object, object], bool],
) -> Committed:
    kind = request.param
    made = {"experience": make_experience, "targets": make_targets, "checkpoint": make_checkpoint}[kind]()
    home = tmp_path_factory.mktemp(kind)

    def write(directory: Path) -> None:
        {"experience": write_experience, "targets": write_targets, "checkpoint": write_checkpoint}[kind](
            directory, made
        )

    with committing(
        LocalUnitStore(home / kind, home / "staging"),
        kind=UnitKind(kind),
        cycle=3,
        inputs={"checkpoint": "ab" * 32},
        made_by={"mlflow_run_id": "r"},
    ) as draft:
        write(draft.directory)
        draft.metrics += [Metric("score/episode", 123, 4.5), Metric("loss/mean", 456, 1 / 3)]
        draft.speed["play"] = 1234.5
    unit = open_unit(home / kind / "00003")
    assert unit is not None
    read: Read = {"experience": read_experience, "targets": read_targets, "checkpoint": read_checkpoint}[kind]
    files = {name: (unit.directory / name).read_bytes() for name in [MANIFEST, *unit.files]}
    return Committed(unit, made, read, same, files, set())


def test_undamaged_unit_is_read_unchanged(committed: Committed) -> None:
    assert committed.noticed()
    assert committed.same(committed.read(committed.unit.directory), committed.values)
    assert len(committed.files) >= 5


def test_flipped_bit_in_any_file_is_detected(committed: Committed, figure: Tell) -> None:
    draws = random.Random(f"flips {committed.unit.kind}")
    names = sorted(committed.files)
    flips = -(-CORRUPTIONS // len(KINDS))
    for number in range(flips):
        name = names[number % len(names)]
        data = bytearray(committed.files[name])
        bit = draws.randrange(8 * len(data))
        data[bit // 8] ^= 1 << bit % 8
        committed.damage(name, bytes(data))
        assert committed.noticed(name), (name, bit)
        committed.repair()
    figure(7, f"{flips} flipped bits in files of a unit ({committed.unit.kind})", UNNOTICED)


def test_flipped_bit_in_a_listed_file_is_never_harmless(committed: Committed) -> None:
    for name in sorted(committed.files.keys() - {MANIFEST}):
        data = bytearray(committed.files[name])
        data[len(data) // 2] ^= 1
        committed.damage(name, bytes(data))
        with pytest.raises(CorruptUnitError) as raised:
            open_unit(committed.unit.directory)
        assert f"{committed.unit.directory / name} is not what was committed" in str(raised.value)
        committed.repair()


def test_file_of_another_length_is_detected(committed: Committed, figure: Tell) -> None:
    draws = random.Random(f"lengths {committed.unit.kind}")
    for name, data in sorted(committed.files.items()):
        for changed in (
            b"",
            data[: draws.randrange(len(data))],
            data[:-1],
            data + b"\0",
            data + data,
            bytes(len(data)),
        ):
            committed.damage(name, changed)
            assert committed.noticed(name), (name, len(changed))
            if name == MANIFEST and changed != data[:-1]:  # its last byte is a newline
                with pytest.raises(CorruptUnitError, match=r"manifest\.json"):
                    open_unit(committed.unit.directory)
            committed.repair()
    figure(7, f"{6 * len(committed.files)} wrong lengths of files of a unit ({committed.unit.kind})", UNNOTICED)


def test_deleted_file_is_detected(committed: Committed, figure: Tell) -> None:
    for name in sorted(committed.files):
        committed.damage(name, None)
        with pytest.raises(CorruptUnitError) as raised:
            open_unit(committed.unit.directory)
        assert f"{committed.unit.directory / name} is missing" in str(raised.value)
        committed.repair()
    figure(7, f"{len(committed.files)} deleted files of a unit ({committed.unit.kind})", UNNOTICED)


def test_swapped_files_are_detected(committed: Committed, figure: Tell) -> None:
    draws = random.Random(f"swaps {committed.unit.kind}")
    names = sorted(committed.files)
    pairs = [draws.sample(names, 2) for _ in range(20)]
    for one, other in pairs:
        committed.damage(one, committed.files[other])
        committed.damage(other, committed.files[one])
        assert committed.noticed(one, other), (one, other)
        committed.repair()
    figure(7, f"{len(pairs)} pairs of swapped files of a unit ({committed.unit.kind})", UNNOTICED)


def test_file_of_another_unit_is_detected(
    committed: Committed, tmp_path: Path, make_targets: Callable[..., Targets]
) -> None:
    write_targets(tmp_path, make_targets(seed=1))
    for path in filter(Path.is_file, tmp_path.rglob("*")):
        name = path.relative_to(tmp_path).as_posix()
        if committed.files.get(name, path.read_bytes()) != path.read_bytes():
            committed.damage(name, path.read_bytes())
            assert committed.noticed(name)
            with pytest.raises(CorruptUnitError):
                open_unit(committed.unit.directory)
            committed.repair()


def test_manifest_of_another_unit_is_detected(committed: Committed, tmp_path: Path) -> None:
    with committing(LocalUnitStore(tmp_path, tmp_path / "s"), kind=TARGETS, cycle=3, inputs={}, made_by={}) as draft:
        (draft.directory / "x").write_bytes(b"x")
    committed.damage(MANIFEST, (tmp_path / "00003" / MANIFEST).read_bytes())
    with pytest.raises(CorruptUnitError):
        open_unit(committed.unit.directory)
    committed.repair()


def test_lost_directory_is_detected(committed: Committed, tmp_path: Path) -> None:
    for folder in [path for path in sorted(committed.unit.directory.rglob("*")) if path.is_dir()]:
        copy = shutil.copytree(committed.unit.directory, tmp_path / "copy")
        shutil.rmtree(copy / folder.relative_to(committed.unit.directory))
        with pytest.raises(CorruptUnitError, match="missing"):
            open_unit(copy)
        shutil.rmtree(copy)
