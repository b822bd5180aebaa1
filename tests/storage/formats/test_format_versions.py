"""Files of newer releases are refused in one line; files of release 0.1.0 are read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_run import commit
from small_units import manifest_of

from dqn.checkpoint import Checkpoint, CheckpointMetadata
from dqn.config import make_config
from dqn.evaluation.evaluation import Evaluation, Protocol
from dqn.export.inference_spec import ExportedAgent
from dqn.learning.networks import make_network
from storage.errors import CorruptUnitError, NewerFormatError
from storage.format_version import check_format
from storage.formats import agent_export, checkpoint, evaluation
from storage.runs import StoredRun
from storage.units import unit
from storage.units.unit import CHECKPOINT

EVALUATION = Evaluation(Protocol("ALE/Breakout-v5", 3, 0.05, 9), [1.0, 2.0, 6.0], [100, 200, 300], 1)


def exported() -> ExportedAgent:
    config = make_config("fast", {"network": "small"})
    weights = {name: weight.contiguous() for name, weight in make_network(config, 2).state_dict().items()}
    return ExportedAgent("0123", "first", "abc", CheckpointMetadata(config, ("NOOP", "FIRE")), weights, EVALUATION)


@pytest.fixture(params=["checkpoint", "evaluation", "agent"])
def stored(
    request: pytest.FixtureRequest, tmp_path: Path, make_checkpoint: Callable[..., Checkpoint]
) -> tuple[Path, int, Callable[[], Any]]:
    """The JSON file of a format, its version, and a function that reads it."""
    if request.param == "checkpoint":
        checkpoint.write_checkpoint(tmp_path, make_checkpoint())
        return tmp_path / "checkpoint.json", checkpoint.FORMAT, lambda: checkpoint.read_metadata(tmp_path)
    if request.param == "evaluation":
        evaluation.write_evaluation(tmp_path, EVALUATION)
        return tmp_path / "evaluation.json", evaluation.FORMAT, lambda: evaluation.read_evaluation(tmp_path)
    agent_export.write_export(tmp_path, exported(), "a card")
    return tmp_path / "config.json", agent_export.FORMAT, lambda: agent_export.read_export(tmp_path).metadata


def change(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_bytes()) | changes))


def test_written_file_has_its_format(stored: tuple[Path, int, Callable[[], Any]]) -> None:
    path, version, read = stored
    assert json.loads(path.read_bytes())["format"] == version
    assert read()


def test_newer_format_is_refused_in_one_line(stored: tuple[Path, int, Callable[[], Any]]) -> None:
    path, version, read = stored
    change(path, format=version + 1, unknown_field=1)
    with pytest.raises(NewerFormatError) as raised:
        read()
    told = str(raised.value)
    assert told.startswith(f"{path} has format {version + 1}; this version reads ")
    assert told.endswith(f"{version}: install a newer release") and "\n" not in told


@pytest.mark.parametrize("found", [0, -1, "2", None, True, 1.0, [1]])
def test_invalid_format_is_corrupt(stored: tuple[Path, int, Callable[[], Any]], found: object) -> None:
    path, _, read = stored
    change(path, format=found)
    with pytest.raises(CorruptUnitError, match="has format"):
        read()


def test_absent_format_is_read_as_the_first(tmp_path: Path, make_checkpoint: Callable[..., Checkpoint]) -> None:
    checkpoint.write_checkpoint(tmp_path, make_checkpoint())
    evaluation.write_evaluation(tmp_path, EVALUATION)
    for name in ("checkpoint.json", "evaluation.json"):
        record = json.loads((tmp_path / name).read_bytes())
        del record["format"]
        (tmp_path / name).write_text(json.dumps(record))
    assert checkpoint.read_metadata(tmp_path) == make_checkpoint().metadata
    assert evaluation.read_evaluation(tmp_path) == EVALUATION


def test_export_of_the_previous_format_is_read(tmp_path: Path) -> None:
    agent_export.write_export(tmp_path, exported(), "a card")
    change(tmp_path / "config.json", format=3)
    assert agent_export.read_export(tmp_path).metadata == exported().metadata


def test_newer_manifest_is_refused_and_not_skipped(run: StoredRun) -> None:
    """A resume must neither fall back to an older checkpoint nor make the unit again."""
    commit(run, CHECKPOINT, 1)
    newer = commit(run, CHECKPOINT, 2)
    path = newer.directory / unit.MANIFEST
    path.write_text(json.dumps({**manifest_of(newer.directory), "format": 2, "digest": "ab" * 32}))
    for read in (run.newest_checkpoint, lambda: run.made(CHECKPOINT, 2, {})):
        with pytest.raises(NewerFormatError) as raised:
            read()
        assert str(raised.value) == f"{path} has format 2; this version reads 1: install a newer release"


def test_check_format_accepts_only_the_range() -> None:
    for found in (2, 3):
        check_format(found, "file", newest=3, oldest=2)
    with pytest.raises(CorruptUnitError, match="file has format 1; this version reads 2 to 3"):
        check_format(1, "file", newest=3, oldest=2)
    with pytest.raises(NewerFormatError, match="file has format 4; this version reads 2 to 3: install a newer"):
        check_format(4, "file", newest=3, oldest=2)
