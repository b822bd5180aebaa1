"""What every place promises, on a file system and on a real S3 server alike."""

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
class Shelf:
    """A place, and what a stranger can do to what is kept there."""

    place: UnitStore
    root: Path

    def commit(self, cycle: int = 4, tree: dict = FILES, metrics: list[Metric] = METRICS, **inputs: str) -> Unit:
        made_by = {"mlflow_run_id": "r", "prefect_flow_run_id": "f"}
        with committing(self.place, kind=TARGETS, cycle=cycle, inputs=inputs or INPUTS, made_by=made_by) as draft:
            write_tree(draft.directory, tree)
            draft.metrics += metrics
        return draft.unit

    @property
    def elsewhere(self) -> UnitStore:
        """The same place for another machine, which has no copies of anything."""
        if isinstance(self.place, S3UnitStore):
            other = self.root / uuid.uuid4().hex
            return replace(self.place, staging=other / "staging", cache=other / "cache")
        return self.place

    def names(self) -> list[str]:
        """Whole names of all that is kept there."""
        if isinstance(self.place, S3UnitStore):
            return self.place._relative(self.place._keys())
        paths = [path for path in self.place.directory.rglob("*") if path.is_file()]
        return [path.relative_to(self.place.directory).as_posix() for path in paths]

    def files(self) -> dict[str, bytes]:
        """All that is kept there."""
        if isinstance(self.place, S3UnitStore):
            store, prefix = self.place._store, self.place._key()
            return {name: bytes(obstore.get(store, f"{prefix}/{name}").bytes()) for name in self.names()}
        return {name: (self.place.directory / name).read_bytes() for name in self.names()}

    def write(self, name: str, data: bytes | None) -> None:
        """Change what is kept under a whole name, or remove it."""
        if isinstance(self.place, S3UnitStore):
            key = f"{self.place._key()}/{name}"
            obstore.delete(self.place._store, key) if data is None else obstore.put(self.place._store, key, data)
            return
        path = self.place.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink() if data is None else path.write_bytes(data)

    def name_of(self, name: str, cycle: int = 4) -> str:
        """The whole name of a unit's file."""
        (found,) = (whole for whole in self.names() if whole.startswith(f"{cycle:05d}/") and whole.endswith(f"/{name}"))
        return found

    def leftovers(self) -> list[str]:
        """Names of what is of no unit, and of what is staged."""
        staged = [path.name for path in self.place.staging.iterdir()] if self.place.staging.exists() else []
        units = {f"{cycle:05d}": self.place.open(cycle) for cycle in self.place.cycles()}
        sizes = {name: 1 + len(unit.files) for name, unit in units.items() if unit}
        found: dict[str, int] = {}
        for name in self.names():
            found[name.partition("/")[0]] = found.get(name.partition("/")[0], 0) + 1
        return staged + [name for name, count in found.items() if count != sizes.get(name, 0)]


@pytest.fixture(params=["local", "object"])
def shelf(request: pytest.FixtureRequest, tmp_path: Path) -> Shelf:
    if request.param == "local":
        return Shelf(LocalUnitStore(tmp_path / "replay" / "targets", tmp_path / "staging"), tmp_path)
    request.getfixturevalue("s3")
    url = f"s3://{BUCKET}/pre fix/{uuid.uuid4().hex}/targets"
    return Shelf(S3UnitStore(url, tmp_path / "staging", tmp_path / "cache", retry_seconds=5), tmp_path)


def test_what_was_committed_is_what_is_opened_here_and_elsewhere(shelf: Shelf) -> None:
    made = shelf.commit()
    for place in (shelf.place, shelf.elsewhere):
        unit = place.open(4)
        assert unit is not None
        assert read_tree(unit.directory) == read_tree(made.directory) == FILES
        assert replace(unit, directory=made.directory) == made
        assert (unit.kind, unit.cycle, unit.inputs, unit.metrics) == (TARGETS, 4, INPUTS, METRICS)
    assert shelf.leftovers() == []


def test_the_digest_is_the_same_in_every_place(shelf: Shelf, tmp_path: Path) -> None:
    local = Shelf(LocalUnitStore(tmp_path / "other", tmp_path / "other-staging"), tmp_path)
    assert shelf.commit().digest == local.commit().digest


def test_where_nothing_was_committed_there_is_nothing(shelf: Shelf) -> None:
    assert shelf.place.open(4) is None
    assert shelf.place.cycles() == []
    assert (shelf.place / "deeper").names() == []
    shelf.place.discard(4)
    shelf.place.prune(9)


def test_units_stand_side_by_side_and_are_listed_newest_first(shelf: Shelf) -> None:
    for cycle in (2, 100_000, 0, 31):
        shelf.commit(cycle, {"data": str(cycle).encode()})
    shelf.write("notes/x", b"?")
    shelf.write("7/manifest.json", b"?")
    assert shelf.place.cycles() == shelf.elsewhere.cycles() == [100_000, 31, 2, 0]
    for cycle in (2, 100_000, 0, 31):
        unit = shelf.elsewhere.open(cycle)
        assert unit and read_tree(unit.directory) == {"data": str(cycle).encode()}


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt])
def test_an_exception_in_the_block_leaves_what_stands_there(shelf: Shelf, error: type[BaseException]) -> None:
    class Failing:
        def __iter__(self) -> Iterator[Metric]:
            raise error

    for before in (None, {"old": b"1"}):
        unit = shelf.commit(tree=before) if before else None
        with pytest.raises(error):
            shelf.commit(metrics=Failing())
        assert shelf.place.open(4) == unit
        assert shelf.leftovers() == []


def test_a_unit_of_other_inputs_replaces_the_old_one_whole(shelf: Shelf) -> None:
    shelf.commit(tree={"old": b"1", "both": b"1"}, experience="cd")
    shelf.commit(tree={"new": b"2", "both": b"2"})
    for place in (shelf.place, shelf.elsewhere):
        unit = place.open(4)
        assert unit and read_tree(unit.directory) == {"new": b"2", "both": b"2"} and unit.inputs == INPUTS
    assert shelf.leftovers() == []


def test_a_discarded_unit_is_gone(shelf: Shelf) -> None:
    shelf.commit(3)
    shelf.commit(4)
    shelf.place.discard(4)
    shelf.place.discard(4)
    assert shelf.place.open(4) is None and shelf.elsewhere.open(4) is None
    assert shelf.elsewhere.open(3) is not None
    assert shelf.leftovers() == []


def test_pruning_keeps_the_newest_and_the_spared(shelf: Shelf) -> None:
    for cycle in range(6):
        shelf.commit(cycle, {"data": b"x"})
    shelf.write("notes", b"?")
    for _ in range(2):
        shelf.place.prune(4, 1)
        assert shelf.place.cycles() == [5, 4, 1]
    assert shelf.files()["notes"] == b"?"
    assert {name.partition("/")[0] for name in shelf.names()} == {"00001", "00004", "00005", "notes"}


@pytest.mark.parametrize("how", ["flipped", "cut", "lengthened", "deleted", "swapped", "of another unit"])
def test_damage_to_any_file_is_noticed_and_named(shelf: Shelf, how: str) -> None:
    shelf.commit(5, {"table": b"1", "array": {"c": {"0": b"2"}, "zarr.json": b"3"}, "empty": b"4"})
    shelf.commit()
    files = shelf.files()
    for name in [*NAMES, MANIFEST]:
        whole = shelf.name_of(name)
        data = files[whole]
        if how == "deleted":
            shelf.write(whole, None)
        elif how == "swapped":
            shelf.write(whole, files[shelf.name_of("array/c/0" if name == "table" else "table")])
        elif how == "of another unit":
            shelf.write(whole, files[shelf.name_of(name if name != MANIFEST else "table", 5)])
        elif data or how == "lengthened":
            flipped = data[:-1] + bytes([data[-1] ^ 1]) if data else b""
            shelf.write(whole, {"flipped": flipped, "cut": data[:-2], "lengthened": data + b"x"}[how])
        else:
            continue
        if how == "deleted" and name == MANIFEST and isinstance(shelf.place, S3UnitStore):
            assert shelf.elsewhere.open(4) is None  # there it is the manifest that makes a unit
        else:
            with pytest.raises(CorruptUnitError) as raised:
                shelf.elsewhere.open(4)
            assert f"{shelf.place}/{whole}" in str(raised.value)
            assert "\n" not in str(raised.value)
        shelf.write(whole, data)
    shelf.write(whole, b"?")
    with pytest.raises(CorruptUnitError, match="manifest"):
        shelf.place.open(4, from_cache=False)
    assert shelf.commit() == shelf.place.open(4)
    again = shelf.elsewhere.open(4)
    assert again and read_tree(again.directory) == FILES
    assert shelf.leftovers() == []


def test_the_manifest_of_another_unit_tells_that_it_is_another_one(shelf: Shelf) -> None:
    shelf.commit()
    shelf.commit(5)
    shelf.write("00004/manifest.json", shelf.files()["00005/manifest.json"])
    try:
        unit = shelf.elsewhere.open(4)
    except CorruptUnitError:
        return  # it names files that are not there
    assert unit and unit.cycle == 5, "its caller looks at that"


def test_of_a_unit_that_is_known_files_are_not_read(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    made = shelf.commit()
    monkeypatch.setattr("storage.units.unit.hashlib.file_digest", None)
    known = shelf.place.open(4, made.digest)
    assert known == made
    with pytest.raises(TypeError):
        shelf.place.open(4, "another")


def test_files_that_are_no_units_are_kept_beside_them(shelf: Shelf, tmp_path: Path) -> None:
    for data in (b"first", b"second"):
        (tmp_path / "picture").write_bytes(data)
        shelf.place.put_file("figures/picture.png", tmp_path / "picture")
        assert not (tmp_path / "picture").exists()
    assert shelf.files() == {"figures/picture.png": b"second"}
    assert shelf.place.names() == ["figures"]
    shutil.rmtree(tmp_path / "staging", ignore_errors=True)
