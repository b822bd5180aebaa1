from __future__ import annotations

import ast
import json
import pickle
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import storage
from dqn.checkpoint import Checkpoint, Counters, first_checkpoint
from dqn.config import PRESETS, make_config
from dqn.envs.histories import LaneHistory
from storage.errors import CorruptUnitError
from storage.formats.checkpoint import read_checkpoint, read_metadata, write_checkpoint
from storage.units.local_store import LocalUnitStore
from storage.units.store import committing
from storage.units.unit import CHECKPOINT, open_unit

Make = Callable[..., Checkpoint]
Same = Callable[[object, object], bool]

FILES = ["checkpoint.json", "lanes.safetensors", "optimizer.safetensors", "weights.safetensors"]


@pytest.fixture
def written(tmp_path: Path, make_checkpoint: Make) -> Path:
    write_checkpoint(tmp_path, make_checkpoint())
    return tmp_path


def test_read_checkpoint_equals_written_checkpoint(written: Path, make_checkpoint: Make, same: Same) -> None:
    assert sorted(path.name for path in written.iterdir()) == FILES
    assert same(read_checkpoint(written), make_checkpoint())
    assert read_metadata(written) == make_checkpoint().metadata


@pytest.mark.parametrize("preset", PRESETS)
def test_first_checkpoint_of_a_run_is_restored(tmp_path: Path, same: Same, preset: str) -> None:
    config = make_config(preset, {"lanes": 2, "network": "nature"})
    checkpoint = first_checkpoint(config, ["NOOP", "FIRE"])
    write_checkpoint(tmp_path, checkpoint)
    assert same(read_checkpoint(tmp_path), checkpoint)


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]
)
def test_tensors_of_any_type_and_shape_are_restored(
    tmp_path: Path, make_checkpoint: Make, same: Same, dtype: torch.dtype
) -> None:
    shapes: list[tuple[int, ...]] = [(), (1,), (0,), (3, 4), (2, 0, 3)]
    tensors = {f"{number}.state": torch.ones(shape).to(dtype) for number, shape in enumerate(shapes)}
    checkpoint = replace(make_checkpoint(), weights=tensors, optimizer=tensors)
    write_checkpoint(tmp_path, checkpoint)
    assert same(read_checkpoint(tmp_path), checkpoint)


def test_nan_and_other_special_numbers_are_restored(tmp_path: Path, make_checkpoint: Make) -> None:
    odd = torch.tensor([torch.nan, torch.inf, -torch.inf, -0.0, 1e-45])
    write_checkpoint(tmp_path, replace(make_checkpoint(), weights={"w": odd}))
    read = read_checkpoint(tmp_path).weights["w"]
    assert read.numpy().tobytes() == odd.numpy().tobytes()


histories = st.builds(
    LaneHistory,
    episode=st.integers(0, 2**62),
    seeded_episode=st.integers(0, 2**62),
    actions=st.binary(max_size=30).map(lambda data: np.frombuffer(data, np.uint8)),
    score=st.floats(allow_nan=False),
    steps=st.integers(0, 2**62),
)
counts = st.integers(0, 2**62)


@hypothesis_settings(deadline=None, max_examples=60)
@given(
    st.lists(histories, min_size=1, max_size=5),
    st.builds(Counters, counts, counts, counts, counts),
    st.lists(st.floats(allow_nan=False), max_size=5),
    st.lists(st.text(max_size=9), max_size=5),
)
def test_any_lanes_counters_scores_and_names_are_restored(
    make_checkpoint: Make,
    same: Same,
    lanes: list[LaneHistory],
    counters: Counters,
    scores: list[float],
    names: list[str],
) -> None:
    checkpoint = make_checkpoint()
    metadata = replace(checkpoint.metadata, counters=counters, recent_scores=tuple(scores), action_names=tuple(names))
    checkpoint = replace(checkpoint, metadata=metadata, histories=lanes)
    with tempfile.TemporaryDirectory() as directory:
        write_checkpoint(Path(directory), checkpoint)
        assert same(read_checkpoint(Path(directory)), checkpoint)


def test_equal_checkpoints_make_equal_files_and_units(tmp_path: Path, make_checkpoint: Make) -> None:
    digests, contents = set(), set()
    for name in ("one", "other"):
        checkpoint = make_checkpoint()
        if name == "other":  # the order of the tensors makes no difference
            checkpoint = replace(checkpoint, weights=dict(reversed(checkpoint.weights.items())))
        directory = tmp_path / name
        with committing(
            LocalUnitStore(directory, directory / "s"), kind=CHECKPOINT, cycle=1, inputs={}, made_by={}
        ) as draft:
            write_checkpoint(draft.directory, checkpoint)
            contents.add(tuple((draft.directory / file).read_bytes() for file in FILES))
        unit = open_unit(directory / "00001")
        assert unit is not None
        digests.add(unit.digest)
    assert len(contents) == len(digests) == 1


def test_different_checkpoints_make_different_files(tmp_path: Path, make_checkpoint: Make) -> None:
    for seed in (0, 1):
        (tmp_path / str(seed)).mkdir()
        write_checkpoint(tmp_path / str(seed), make_checkpoint(seed))
    for name in FILES:
        assert (tmp_path / "0" / name).read_bytes() != (tmp_path / "1" / name).read_bytes()


@contextmanager
def files_limited_to(count: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("full_at", "room"),
    [
        ("checkpoint.json", 0),
        ("weights.safetensors", 4_000),
    ],
)
def test_full_disk_is_an_os_error_and_publishes_nothing(
    tmp_path: Path, make_checkpoint: Make, full_at: str, room: int
) -> None:
    checkpoint = replace(make_checkpoint(), weights={"w": torch.ones(10_000)})
    begun = []

    def attempt() -> None:
        with committing(
            LocalUnitStore(tmp_path, tmp_path / "s"), kind=CHECKPOINT, cycle=1, inputs={}, made_by={}
        ) as draft:
            try:
                with files_limited_to(room):
                    write_checkpoint(draft.directory, checkpoint)
            finally:
                begun.extend(path.name for path in draft.directory.iterdir())

    with pytest.raises(OSError, match=r"File too large"):
        attempt()
    assert set(begun) - {full_at} == set(FILES[: FILES.index("checkpoint.json") + 1]) - {full_at}
    assert open_unit(tmp_path / "00001") is None
    assert list((tmp_path / "s").iterdir()) == []


# ---------------------------------------------------------------- files with other content


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("data", [None, b"", b"\0" * 8, b"\xff" * 100, b"[]", b"{}", b"null", b'{"a": 1}', b"{" * 9])
def test_file_of_other_bytes_is_corrupt(written: Path, name: str, data: bytes | None) -> None:
    (written / name).unlink()
    if data is not None:
        (written / name).write_bytes(data)
    with pytest.raises(CorruptUnitError, match=str(written)):
        read_checkpoint(written)


@pytest.mark.parametrize("name", FILES)
def test_directory_in_place_of_a_file_is_corrupt(written: Path, name: str) -> None:
    (written / name).unlink()
    (written / name).mkdir()
    with pytest.raises(CorruptUnitError, match=str(written)):
        read_checkpoint(written)


def test_deeply_nested_json_is_corrupt(written: Path) -> None:
    (written / "checkpoint.json").write_text("[" * 100_000)
    with pytest.raises(CorruptUnitError, match=str(written)):
        read_metadata(written)


@pytest.mark.parametrize("field", ["config", "action_names", "counters", "recent_scores"])
def test_missing_metadata_is_named(written: Path, field: str) -> None:
    metadata = json.loads((written / "checkpoint.json").read_bytes())
    del metadata[field]
    (written / "checkpoint.json").write_text(json.dumps(metadata))
    with pytest.raises(CorruptUnitError, match=rf"checkpoint\.json .*{field}"):
        read_metadata(written)


def change_metadata(directory: Path, **changes: object) -> None:
    metadata = json.loads((directory / "checkpoint.json").read_bytes())
    (directory / "checkpoint.json").write_text(json.dumps(metadata | changes))


@pytest.mark.parametrize(
    ("field", "value"), [("lanes", 0), ("lanes", "many"), ("discount", 2), ("sweep", "sideways"), ("unheard_of", 1)]
)
def test_config_out_of_range_is_corrupt_and_names_the_field(written: Path, field: str, value: object) -> None:
    config = json.loads((written / "checkpoint.json").read_bytes())["config"]
    change_metadata(written, config=config | {field: value})
    with pytest.raises(CorruptUnitError, match=rf"checkpoint\.json: {field}: "):
        read_metadata(written)


@pytest.mark.parametrize("game", ["x/../../../outside-v0", "os:Path-v0", "CartPole-v1", ""])
def test_unknown_game_is_corrupt_and_not_imported(written: Path, game: str) -> None:
    config = json.loads((written / "checkpoint.json").read_bytes())["config"]
    change_metadata(written, config=config | {"game": game})
    with pytest.raises(CorruptUnitError, match=r"checkpoint\.json .*unknown game"):
        read_metadata(written)


@pytest.mark.parametrize("value", [None, 3, "x", [], {"cycle": 1, "more": 2}])
def test_invalid_counters_are_corrupt(written: Path, value: object) -> None:
    change_metadata(written, counters=value)
    with pytest.raises(CorruptUnitError, match=r"checkpoint\.json"):
        read_metadata(written)


@pytest.mark.parametrize(
    "changes",
    [
        {"counters": {"cycle": "one"}},
        {"counters": {"states": -1}},
        {"counters": {"states": 1.5}},
        {"action_names": "NOOP"},
        {"action_names": [1, 2]},
        {"recent_scores": ["high"]},
        {"recent_scores": [None]},
    ],
    ids=str,
)
def test_metadata_of_another_type_is_corrupt(written: Path, changes: dict[str, object]) -> None:
    change_metadata(written, **changes)
    with pytest.raises(CorruptUnitError, match=r"checkpoint\.json"):
        read_metadata(written)


LANES = ["actions", "episode", "lengths", "score", "seeded_episode", "steps"]


@pytest.mark.parametrize("name", LANES)
def test_missing_part_of_the_lanes_is_named(written: Path, name: str) -> None:
    lanes = safetensors.numpy.load_file(written / "lanes.safetensors")
    del lanes[name]
    safetensors.numpy.save_file(lanes, written / "lanes.safetensors")
    with pytest.raises(CorruptUnitError, match=name):
        read_checkpoint(written)


@pytest.mark.parametrize("name", ["episode", "seeded_episode", "score", "steps", "lengths"])
def test_lanes_of_different_numbers_are_corrupt(written: Path, name: str) -> None:
    lanes = safetensors.numpy.load_file(written / "lanes.safetensors")
    lanes[name] = lanes[name][:-1].copy()
    safetensors.numpy.save_file(lanes, written / "lanes.safetensors")
    with pytest.raises(CorruptUnitError):
        read_checkpoint(written)


@pytest.mark.parametrize("what", ["actions cut off", "actions too many", "actions of another type", "negative length"])
def test_actions_of_other_lengths_are_corrupt(written: Path, what: str) -> None:
    lanes = safetensors.numpy.load_file(written / "lanes.safetensors")
    actions, lengths = lanes["actions"], lanes["lengths"]
    lanes |= {
        "actions cut off": {"actions": actions[:-1].copy()},
        "actions too many": {"actions": np.append(actions, actions[:1])},
        "actions of another type": {"actions": actions.astype(np.float32)},
        "negative length": {"lengths": lengths * np.array([1, -1, 1])},
    }[what]
    safetensors.numpy.save_file(lanes, written / "lanes.safetensors")
    with pytest.raises(CorruptUnitError, match="lanes"):
        read_checkpoint(written)


class Payload:
    """An object whose unpickling creates a file."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.proof,)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", ["pickle", "torch", "numpy"])
def test_pickle_in_place_of_a_file_is_not_loaded(written: Path, name: str, how: str) -> None:
    payload, path = Payload(written / "proof"), written / name
    if how == "pickle":
        path.write_bytes(pickle.dumps(payload))
    elif how == "torch":
        torch.save(payload, path)
    else:
        np.save(written / "array.npy", np.array([payload], object), allow_pickle=True)
        shutil.move(written / "array.npy", path)
    with pytest.raises(CorruptUnitError):
        read_checkpoint(written)
    assert not (written / "proof").exists()


FORBIDDEN_MODULES = {"pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
FORBIDDEN_CALLS = {"torch.load", "np.load", "numpy.load", "eval", "exec", "pd.read_pickle"}


def loads_code(source: str) -> list[str]:
    """Imports and calls of a source that could run code from a file."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names if name.name.split(".")[0] in FORBIDDEN_MODULES]
        elif isinstance(node, ast.ImportFrom):
            found += [node.module or ""] if (node.module or "").split(".")[0] in FORBIDDEN_MODULES else []
        elif isinstance(node, ast.Call):
            call = ast.unparse(node.func)
            found += [call] if call in FORBIDDEN_CALLS else []
            found += [keyword.arg for keyword in node.keywords if keyword.arg in ("allow_pickle", "weights_only")]
    return found


def test_no_source_loads_pickles_or_runs_stored_code() -> None:
    root = Path(storage.__file__).parent.parent
    sources = [path for package in ("dqn", "storage", "tasks", "flows") for path in (root / package).glob("**/*.py")]
    assert len(sources) > 25
    assert {path.name: found for path in sources if (found := loads_code(path.read_text()))} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "torch.load(path)",
        "np.load(f)",
        "f(x, allow_pickle=True)",
        "eval(x)",
    ],
)
def test_check_of_the_sources_finds_forbidden_calls(source: str) -> None:
    assert loads_code(source)
