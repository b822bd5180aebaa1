"""Behaviour of every store, on a file system and on a real S3 server."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import obstore
import pytest
from s3_server import BUCKET
from small_units import FILES, METRICS, read_tree, write_tree

from dqn.metrics import Metric
from storage.errors import CorruptUnitError
from storage.units.local_store import LocalUnitStore
from storage.units.s3_store import S3UnitStore
from storage.units.store import UnitStore, committing
from storage.units.unit import MANIFEST, TARGETS, Unit

INPUTS = {"experience": "ab" * 32}
NAMES = ["table", "array/c/0", "array/zarr.json", "empty"]


@dataclass
class StoreAccess:
    """A store, with access to the files in it."""

    store: UnitStore
    root: Path

    def commit(self, cycle: int = 4, tree: dict = FILES, metrics: list[Metric] = METRICS, **inputs: str) -> Unit:
        made_by = {"mlflow_run_id": "r", "prefect_flow_run_id": "f"}
        with committing(self.store, kind=TARGETS, cycle=cycle, inputs=inputs or INPUTS, made_by=made_by) as draft:
            write_tree(draft.directory, tree)
            draft.metrics += metrics
        return draft.unit

    @property
    def elsewhere(self) -> UnitStore:
        """The same store on another machine, whose cache is empty."""
        if isinstance(self.store, S3UnitStore):
            other = self.root / uuid.uuid4().hex
            return replace(self.store, staging=other / "staging", cache=other / "cache")
        return self.store

    def names(self) -> list[str]:
        """Names of all stored files below the store."""
        if isinstance(self.store, S3UnitStore):
            return self.store._relative(self.store._keys())
        paths = [path for path in self.store.directory.rglob("*") if path.is_file()]
        return [path.relative_to(self.store.directory).as_posix() for path in paths]

    def files(self) -> dict[str, bytes]:
        """All stored files by name."""
        if isinstance(self.store, S3UnitStore):
            bucket, prefix = self.store._store, self.store._key()
            return {name: bytes(obstore.get(bucket, f"{prefix}/{name}").bytes()) for name in self.names()}
        return {name: (self.store.directory / name).read_bytes() for name in self.names()}

    def write(self, name: str, data: bytes | None) -> None:
        """Change the stored file of that name, or remove it."""
        if isinstance(self.store, S3UnitStore):
            key = f"{self.store._key()}/{name}"
            obstore.delete(self.store._store, key) if data is None else obstore.put(self.store._store, key, data)
            return
        path = self.store.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink() if data is None else path.write_bytes(data)

    def name_of(self, name: str, cycle: int = 4) -> str:
        """The name of a unit's file below the store."""
        (found,) = (whole for whole in self.names() if whole.startswith(f"{cycle:05d}/") and whole.endswith(f"/{name}"))
        return found

    def leftovers(self) -> list[str]:
        """Names of staged files and of stored files that belong to no unit."""
        staged = [path.name for path in self.store.staging.iterdir()] if self.store.staging.exists() else []
        units = {f"{cycle:05d}": self.store.open(cycle) for cycle in self.store.cycles()}
        sizes = {name: 1 + len(unit.files) for name, unit in units.items() if unit}
        found: dict[str, int] = {}
        for name in self.names():
            found[name.partition("/")[0]] = found.get(name.partition("/")[0], 0) + 1
        return staged + [name for name, count in found.items() if count != sizes.get(name, 0)]


@pytest.fixture(params=["local", "object"])
def access(request: pytest.FixtureRequest, tmp_path: Path) -> StoreAccess:
    if request.param == "local":
        return StoreAccess(LocalUnitStore(tmp_path / "replay" / "targets", tmp_path / "staging"), tmp_path)
    request.getfixturevalue("s3")
    url = f"s3://{BUCKET}/pre fix/{uuid.uuid4().hex}/targets"
    return StoreAccess(S3UnitStore(url, tmp_path / "staging", tmp_path / "cache", retry_seconds=5), tmp_path)


def test_opened_unit_equals_committed_unit_on_any_machine(access: StoreAccess) -> None:
    made = access.commit()
    for store in (access.store, access.elsewhere):
        unit = store.open(4)
        assert unit is not None
        assert read_tree(unit.directory) == read_tree(made.directory) == FILES
        assert replace(unit, directory=made.directory) == made
        assert (unit.kind, unit.cycle, unit.inputs, unit.metrics) == (TARGETS, 4, INPUTS, METRICS)
    assert access.leftovers() == []


def test_digest_is_the_same_in_every_store(access: StoreAccess, tmp_path: Path) -> None:
    local = StoreAccess(LocalUnitStore(tmp_path / "other", tmp_path / "other-staging"), tmp_path)
    assert access.commit().digest == local.commit().digest


def test_empty_store_has_no_units(access: StoreAccess) -> None:
    assert access.store.open(4) is None
    assert access.store.cycles() == []
    assert (access.store / "deeper").names() == []
    access.store.discard(4)
    access.store.prune(9)


def test_cycles_are_listed_newest_first(access: StoreAccess) -> None:
    for cycle in (2, 100_000, 0, 31):
        access.commit(cycle, {"data": str(cycle).encode()})
    access.write("notes/x", b"?")
    access.write("7/manifest.json", b"?")
    assert access.store.cycles() == access.elsewhere.cycles() == [100_000, 31, 2, 0]
    for cycle in (2, 100_000, 0, 31):
        unit = access.elsewhere.open(cycle)
        assert unit and read_tree(unit.directory) == {"data": str(cycle).encode()}


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt])
def test_exception_in_the_block_keeps_the_committed_unit(access: StoreAccess, error: type[BaseException]) -> None:
    class Failing:
        def __iter__(self) -> Iterator[Metric]:
            raise error

    for before in (None, {"old": b"1"}):
        unit = access.commit(tree=before) if before else None
        with pytest.raises(error):
            access.commit(metrics=Failing())
        assert access.store.open(4) == unit
        assert access.leftovers() == []


def test_new_unit_replaces_all_files_of_the_old(access: StoreAccess) -> None:
    access.commit(tree={"old": b"1", "both": b"1"}, experience="cd")
    access.commit(tree={"new": b"2", "both": b"2"})
    for store in (access.store, access.elsewhere):
        unit = store.open(4)
        assert unit and read_tree(unit.directory) == {"new": b"2", "both": b"2"} and unit.inputs == INPUTS
    assert access.leftovers() == []


def test_discarded_unit_is_gone(access: StoreAccess) -> None:
    access.commit(3)
    access.commit(4)
    access.store.discard(4)
    access.store.discard(4)
    assert access.store.open(4) is None and access.elsewhere.open(4) is None
    assert access.elsewhere.open(3) is not None
    assert access.leftovers() == []


def test_prune_keeps_newest_and_spared_cycles(access: StoreAccess) -> None:
    for cycle in range(6):
        access.commit(cycle, {"data": b"x"})
    access.write("notes", b"?")
    for _ in range(2):
        access.store.prune(4, 1)
        assert access.store.cycles() == [5, 4, 1]
    assert access.files()["notes"] == b"?"
    assert {name.partition("/")[0] for name in access.names()} == {"00001", "00004", "00005", "notes"}


@pytest.mark.parametrize("how", ["flipped", "cut", "lengthened", "deleted", "swapped", "of another unit"])
def test_damaged_file_is_named(access: StoreAccess, how: str) -> None:
    access.commit(5, {"table": b"1", "array": {"c": {"0": b"2"}, "zarr.json": b"3"}, "empty": b"4"})
    access.commit()
    files = access.files()
    for name in [*NAMES, MANIFEST]:
        whole = access.name_of(name)
        data = files[whole]
        if how == "deleted":
            access.write(whole, None)
        elif how == "swapped":
            access.write(whole, files[access.name_of("array/c/0" if name == "table" else "table")])
        elif how == "of another unit":
            access.write(whole, files[access.name_of(name if name != MANIFEST else "table", 5)])
        elif data or how == "lengthened":
            flipped = data[:-1] + bytes([data[-1] ^ 1]) if data else b""
            access.write(whole, {"flipped": flipped, "cut": data[:-2], "lengthened": data + b"x"}[how])
        else:
            continue
        if how == "deleted" and name == MANIFEST and isinstance(access.store, S3UnitStore):
            assert access.elsewhere.open(4) is None  # on S3 the manifest makes the unit
        else:
            with pytest.raises(CorruptUnitError) as raised:
                access.elsewhere.open(4)
            assert f"{access.store}/{whole}" in str(raised.value)
            assert "\n" not in str(raised.value)
        access.write(whole, data)
    access.write(whole, b"?")
    with pytest.raises(CorruptUnitError, match="manifest"):
        access.store.open(4, from_cache=False)
    assert access.commit() == access.store.open(4)
    again = access.elsewhere.open(4)
    assert again and read_tree(again.directory) == FILES
    assert access.leftovers() == []


def test_manifest_of_another_unit_has_its_cycle(access: StoreAccess) -> None:
    access.commit()
    access.commit(5)
    access.write("00004/manifest.json", access.files()["00005/manifest.json"])
    try:
        unit = access.elsewhere.open(4)
    except CorruptUnitError:
        return  # it names files that do not exist
    assert unit and unit.cycle == 5, "StoredRun.unit checks that"


def test_files_of_a_known_unit_are_not_read(access: StoreAccess, monkeypatch: pytest.MonkeyPatch) -> None:
    made = access.commit()
    monkeypatch.setattr("storage.units.unit.hashlib.file_digest", None)
    known = access.store.open(4, made.digest)
    assert known == made
    with pytest.raises(TypeError):
        access.store.open(4, "another")


def test_put_file_stores_a_file_beside_units(access: StoreAccess, tmp_path: Path) -> None:
    for data in (b"first", b"second"):
        (tmp_path / "picture").write_bytes(data)
        access.store.put_file("figures/picture.png", tmp_path / "picture")
        assert not (tmp_path / "picture").exists()
    assert access.files() == {"figures/picture.png": b"second"}
    assert access.store.names() == ["figures"]
    shutil.rmtree(tmp_path / "staging", ignore_errors=True)
