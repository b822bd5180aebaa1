from __future__ import annotations

import json
import pickle
import shutil
import tracemalloc
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from dqn.envs.experience import Experience, Targets
from storage.errors import CorruptUnitError
from storage.formats.experience import (
    EXPERIENCE_GROUP,
    TARGETS_GROUP,
    read_all_targets,
    read_experience,
    read_experiences,
    read_targets,
    write_experience,
    write_targets,
)
from storage.units.local_store import LocalUnitStore
from storage.units.store import committing
from storage.units.unit import EXPERIENCE, Unit, open_unit

Make = Callable[..., Any]
Same = Callable[[object, object], bool]


def all_files(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


@pytest.mark.parametrize(
    ("steps", "lanes", "actions"),
    [
        (1, 1, 1),
        (5, 2, 4),
        (7, 64, 18),  # one whole chunk
        (8, 64, 4),  # and a last one of one step
        (23, 64, 4),
        (3, 501, 4),  # more lanes than states in a chunk
        (501, 1, 6),
    ],
)
def test_read_experience_equals_written_experience(
    tmp_path: Path, make_experience: Make, same: Same, steps: int, lanes: int, actions: int
) -> None:
    experience = make_experience(steps, lanes, actions)
    write_experience(tmp_path, experience)
    assert same(read_experience(tmp_path), experience)


def test_states_of_stacked_frames_are_restored(tmp_path: Path, same: Same) -> None:
    experience = Experience.empty(5, 2, 4, channels=4)
    experience.states[:] = np.random.default_rng(0).integers(0, 256, experience.states.shape)
    write_experience(tmp_path, experience)
    assert same(read_experience(tmp_path), experience) and same(read_experiences([[tmp_path]]), experience)


def test_experience_without_states_has_everything_else(tmp_path: Path, make_experience: Make, same: Same) -> None:
    experience = make_experience(9, 64)
    write_experience(tmp_path, experience)
    read = read_experience(tmp_path, with_states=False)
    assert read.states.shape == (0, 64, 105, 80, 2)
    assert same(read, replace(experience, states=experience.states[:0]))


def test_experience_without_states_does_not_read_their_files(tmp_path: Path, make_experience: Make, same: Same) -> None:
    experience = make_experience()
    write_experience(tmp_path, experience)
    shutil.rmtree(tmp_path / EXPERIENCE_GROUP / "states")
    assert same(read_experience(tmp_path, with_states=False), replace(experience, states=experience.states[:0]))


def test_consecutive_cycles_are_read_as_one_experience(tmp_path: Path, make_experience: Make, same: Same) -> None:
    cycles = [make_experience(steps, 64) for steps in (3, 9, 1)]
    directories = [tmp_path / str(number) for number in range(3)]
    for directory, experience in zip(directories, cycles, strict=True):
        directory.mkdir()
        write_experience(directory, experience)
    tables = {field.name: [getattr(cycle, field.name) for cycle in cycles] for field in fields(Experience)}
    last = {"bootstrap_q_values": cycles[-1].bootstrap_q_values}
    joined = Experience(**{**{name: np.concatenate(parts) for name, parts in tables.items()}, **last})
    assert same(read_experiences([[each] for each in directories]), joined)
    assert same(read_experiences([directories[:1]]), cycles[0])


def test_shards_of_several_cycles_are_read_as_one_experience(
    tmp_path: Path, make_experience: Make, make_targets: Make, same: Same
) -> None:
    cycles, swept = [make_experience(steps, 9) for steps in (300, 2)], make_targets(5, 9)
    directories = []
    for number, experience in enumerate(cycles):
        directories.append([tmp_path / f"{number}-{shard}" for shard in range(3)])
        for shard, lanes in enumerate((slice(0, 4), slice(4, 5), slice(5, 9))):
            directories[number][shard].mkdir()
            tables = {field.name: getattr(experience, field.name)[:, lanes] for field in fields(Experience)}
            tables["bootstrap_q_values"] = experience.bootstrap_q_values[lanes]
            write_experience(directories[number][shard], Experience(**tables))
            write_targets(
                directories[number][shard], Targets(swept.q_values[:, lanes], swept.estimation_errors[:, lanes])
            )
    tables = {
        field.name: np.concatenate([getattr(cycle, field.name) for cycle in cycles]) for field in fields(cycles[0])
    }
    joined = Experience(**{**tables, "bootstrap_q_values": cycles[-1].bootstrap_q_values})
    assert same(read_experiences(directories), joined)
    assert same(read_experiences(directories, with_states=False), replace(joined, states=joined.states[:0]))
    assert same(read_all_targets(directories[0]), swept)


def test_states_of_another_shape_are_corrupt(tmp_path: Path, make_experience: Make) -> None:
    write_experience(tmp_path, make_experience(4, 2))
    states = zarr.open_group(tmp_path / EXPERIENCE_GROUP)["states"]
    states.resize((3, *states.shape[1:]))
    with pytest.raises(CorruptUnitError, match=r"states is uint8 \(3, 2, .*not uint8 \(4, 2, "):
        read_experiences([[tmp_path]])


def test_extreme_values_are_restored(tmp_path: Path, make_experience: Make, same: Same) -> None:
    odd = np.array([np.nan, np.inf, -np.inf, -0.0, 1e-45, 3.4e38], np.float32)
    experience = replace(
        make_experience(6, 1, 1),
        rewards=odd[:, None],
        episode=np.array([0, -1, 2**63 - 1, -(2**63), 1, 2])[:, None],
        states=np.full((6, 1, 105, 80, 2), 255, np.uint8),
    )
    write_experience(tmp_path, experience)
    assert same(read_experience(tmp_path), experience)


def test_read_targets_equal_written_targets(tmp_path: Path, make_targets: Make, same: Same) -> None:
    for number, size in enumerate([(1, 1, 1), (5, 2, 4), (70, 64, 18)]):
        directory = tmp_path / str(number)
        directory.mkdir()
        write_targets(directory, make_targets(*size))
        assert same(read_targets(directory), make_targets(*size))


@pytest.mark.parametrize(("steps", "chunk", "count"), [(3, 3, 1), (7, 7, 1), (14, 7, 2), (15, 7, 3)])
def test_chunks_are_whole_steps_of_states_or_whole_tables(
    tmp_path: Path, make_experience: Make, steps: int, chunk: int, count: int
) -> None:
    write_experience(tmp_path, make_experience(steps, 64))
    group = zarr.open_group(tmp_path / EXPERIENCE_GROUP, mode="r")
    assert group["states"].chunks == (chunk, 64, 105, 80, 2)
    assert len([name for name in all_files(tmp_path) if "/states/c" in name]) == count
    for name in ("q_values", "actions", "episode"):
        assert group[name].chunks == group[name].shape


def test_every_array_has_checksums_and_all_its_chunks(tmp_path: Path) -> None:
    write_experience(tmp_path, Experience.empty(2, 3, 4))
    files = all_files(tmp_path)
    for field in fields(Experience):
        metadata = json.loads(files[f"{EXPERIENCE_GROUP}/{field.name}/zarr.json"])
        assert [codec["name"] for codec in metadata["codecs"]] == ["bytes", "zstd", "crc32c"]
        assert any(name.startswith(f"{EXPERIENCE_GROUP}/{field.name}/c.") for name in files)


def test_equal_data_makes_equal_files_and_units(tmp_path: Path, make_experience: Make, make_targets: Make) -> None:
    units: list[Unit | None] = []
    for name in ("one", "other"):
        directory = tmp_path / name
        with committing(
            LocalUnitStore(directory, directory / "s"), kind=EXPERIENCE, cycle=1, inputs={}, made_by={}
        ) as draft:
            write_experience(draft.directory, make_experience(15, 64))
            write_targets(draft.directory, make_targets())
            files = all_files(draft.directory)
        units.append(open_unit(directory / "00001"))
        (tmp_path / f"{name}.pickle").write_bytes(pickle.dumps(files))
    assert (tmp_path / "one.pickle").read_bytes() == (tmp_path / "other.pickle").read_bytes()
    assert units[0] is not None and units[1] is not None and units[0].digest == units[1].digest


def test_different_data_makes_different_files(tmp_path: Path, make_experience: Make) -> None:
    experience = make_experience()
    digests = set()
    for number, field in enumerate([None, *fields(experience)]):
        changed = experience
        if field:
            array = getattr(experience, field.name).copy()
            array.reshape(-1)[-1] = not array.reshape(-1)[-1] if array.dtype == bool else array.reshape(-1)[-1] + 1
            changed = replace(experience, **{field.name: array})
        directory = tmp_path / str(number)
        with committing(
            LocalUnitStore(directory, directory / "s"), kind=EXPERIENCE, cycle=1, inputs={}, made_by={}
        ) as draft:
            write_experience(draft.directory, changed)
        unit = open_unit(directory / "00001")
        assert unit is not None
        digests.add(unit.digest)
    assert len(digests) == 1 + len(fields(experience))


def test_lost_chunk_of_states_is_reported(
    tmp_path: Path, make_experience: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zarr.Array, "__setitem__", lambda array, rows, values: None)
    with pytest.raises(OSError, match="states were not written"):
        write_experience(tmp_path, make_experience(14, 64))


# ---------------------------------------------------------------- files with other content


@pytest.fixture
def written(tmp_path: Path, make_experience: Make, make_targets: Make) -> Path:
    write_experience(tmp_path, make_experience())
    write_targets(tmp_path, make_targets())
    return tmp_path


def read_both(directory: Path) -> None:
    read_experience(directory)
    read_targets(directory)


@pytest.mark.parametrize("group", [EXPERIENCE_GROUP, TARGETS_GROUP])
@pytest.mark.parametrize("what", ["nothing", "a file", "an empty directory", "an array", "foreign metadata"])
def test_file_in_place_of_a_group_is_corrupt(written: Path, group: str, what: str) -> None:
    shutil.rmtree(written / group)
    if what == "a file":
        (written / group).write_bytes(b"?")
    elif what == "an array":
        zarr.create_array(written / group, shape=(2,), dtype="uint8")
    elif what != "nothing":
        (written / group).mkdir()
    if what == "foreign metadata":
        (written / group / "zarr.json").write_text('{"zarr_format": 3, "node_type": "tree"}')
    with pytest.raises(CorruptUnitError, match=group):
        read_both(written)


@pytest.mark.parametrize("name", [field.name for field in fields(Experience)])
def test_missing_array_is_named(written: Path, name: str) -> None:
    shutil.rmtree(written / EXPERIENCE_GROUP / name)
    with pytest.raises(CorruptUnitError, match=f"{EXPERIENCE_GROUP} has no array {name}"):
        read_experience(written)


@pytest.mark.parametrize("name", ["q_values", "estimation_errors"])
def test_group_in_place_of_an_array_is_named(written: Path, name: str) -> None:
    shutil.rmtree(written / TARGETS_GROUP / name)
    zarr.create_group(written / TARGETS_GROUP / name)
    with pytest.raises(CorruptUnitError, match=f"{TARGETS_GROUP} has no array {name}"):
        read_targets(written)


@pytest.mark.parametrize("data", [b"", b"?" * 100, b"\0" * 8])
def test_chunk_of_other_bytes_is_corrupt(written: Path, data: bytes) -> None:
    (written / TARGETS_GROUP / "q_values" / "c.0.0.0").write_bytes(data)
    with pytest.raises(CorruptUnitError, match="q_values"):
        read_targets(written)


def edited(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_bytes()) | changes))


NONSENSE: list[bytes | dict[str, object]] = [
    b"",
    b"{",
    b"\xff",
    b"null",
    b"[" * 100_000,
    {"node_type": "tree"},
    {"zarr_format": 4},
    {"shape": [-1, 2, 4]},
    {"shape": None},
    {"shape": [2**44, 2, 4]},
    {"shape": [2**26, 2, 4]},  # 2 GB, which would be zeros, because chunks are missing
    {
        "shape": [2**26, 2, 4],
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [2**26, 2, 4]}},
    },
    {"data_type": "float17"},
    {"data_type": "string"},
    {"codecs": []},
    {"codecs": [{"name": "pickle"}]},
    {"codecs": [{"name": "numcodecs.pickle", "configuration": {}}]},
    {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [0, 2, 4]}}},
    {"chunk_key_encoding": {"name": "default", "configuration": {"separator": "../"}}},
    {"more": 1},
]


@pytest.mark.parametrize("metadata", NONSENSE, ids=lambda metadata: str(metadata)[:40])
def test_foreign_metadata_of_an_array_is_corrupt(written: Path, metadata: bytes | dict[str, object]) -> None:
    path = written / TARGETS_GROUP / "q_values" / "zarr.json"
    path.write_bytes(metadata) if isinstance(metadata, bytes) else edited(path, **metadata)
    tracemalloc.start()
    try:
        with pytest.raises(CorruptUnitError, match="q_values"):
            read_targets(written)
        assert tracemalloc.get_traced_memory()[1] < 2**28
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", [field.name for field in fields(Experience)])
@pytest.mark.parametrize("other", ["type", "shape", "dimensions"])
def test_array_of_another_type_or_shape_is_corrupt(written: Path, name: str, other: str) -> None:
    array = np.asarray(zarr.open_group(written / EXPERIENCE_GROUP, mode="r")[name])
    foreign = {
        "type": array.astype(np.float64 if array.dtype != np.float64 else np.float32),
        "shape": np.concatenate([array, array[:1]]),
        "dimensions": array[..., None],
    }[other]
    zarr.create_array(written / EXPERIENCE_GROUP / name, data=foreign, overwrite=True)
    with pytest.raises(CorruptUnitError, match=EXPERIENCE_GROUP):
        read_experience(written)


def test_targets_of_another_shape_are_corrupt(written: Path) -> None:
    zarr.create_array(written / TARGETS_GROUP / "estimation_errors", data=np.zeros((4, 2), np.float32), overwrite=True)
    with pytest.raises(CorruptUnitError, match="estimation_errors"):
        read_targets(written)


class Payload:
    """An object whose unpickling creates a file."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.proof,)


PICKLED_TEXT = {"dtype": "|O", "filters": [{"id": "vlen-utf8"}, {"id": "pickle"}]}
PICKLED_OBJECTS = {"dtype": "|O", "filters": [{"id": "pickle"}]}
PICKLED_BYTES = {"dtype": "|u1", "compressor": {"id": "pickle"}}


@pytest.mark.parametrize(
    ("array", "consolidated"),
    [
        (PICKLED_TEXT, False),
        (PICKLED_TEXT, True),
        (PICKLED_OBJECTS, False),
        (PICKLED_BYTES, False),
        (PICKLED_OBJECTS, True),
        (PICKLED_BYTES, True),
    ],
)
def test_group_with_pickled_objects_is_corrupt_and_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, array: dict[str, object], consolidated: bool
) -> None:
    # Older versions of numcodecs unpickle, and other code may allow it again.
    monkeypatch.setattr("numcodecs.pickles.ALLOW_UNSAFE_PICKLE_DECODE", True, raising=False)
    base = {"zarr_format": 2, "shape": [1], "chunks": [1], "fill_value": 0, "order": "C", "filters": None}
    metadata = base | {"compressor": None} | array
    group = tmp_path / TARGETS_GROUP
    for name in ("q_values", "estimation_errors"):
        (group / name).mkdir(parents=True)
        (group / name / ".zarray").write_text(json.dumps(metadata))
        (group / name / "0").write_bytes(pickle.dumps(Payload(tmp_path / "proof")))
    if consolidated:
        inline = {name: metadata | {"attributes": {}} for name in ("q_values", "estimation_errors")}
        about = {"kind": "inline", "must_understand": False, "metadata": inline}
        node = {"zarr_format": 3, "node_type": "group", "attributes": {}, "consolidated_metadata": about}
        (group / "zarr.json").write_text(json.dumps(node))
    else:
        (group / ".zgroup").write_text('{"zarr_format": 2}')
    with pytest.raises(CorruptUnitError):
        read_targets(tmp_path)
    assert not (tmp_path / "proof").exists()
