"""Checkpoints as files: tensors in safetensors, the rest in JSON. Neither can contain code."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import safetensors.numpy
import safetensors.torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError

from dqn.checkpoint import Checkpoint, CheckpointMetadata, Counters, histories_as_arrays, histories_from_arrays
from dqn.envs.games import GameSettings
from storage.errors import CorruptUnitError
from storage.format_version import check_format

FORMAT = 2  # 1, without a version, is that of release 0.1.0, whose fields have other names

FIELDS_OF_RELEASE_0_1 = {"overlap": "no"}  # of a run whose release did not have the field

_metadata = TypeAdapter(CheckpointMetadata)
_METADATA_FIELDS = {field.name for field in fields(CheckpointMetadata)}
_COUNTERS = {field.name for field in fields(Counters)}
_PARSE_ERRORS = (KeyError, TypeError, ValueError, AttributeError, RecursionError)
_NO_FILE = (FileNotFoundError, IsADirectoryError, NotADirectoryError)


def write_checkpoint(directory: Path, checkpoint: Checkpoint) -> None:
    """Write the files of a checkpoint into `directory`."""
    described = {"format": FORMAT, **metadata_as_json(checkpoint.metadata)}
    (directory / "checkpoint.json").write_text(json.dumps(described, indent=1) + "\n")
    lanes = histories_as_arrays(checkpoint.histories)
    # `write_bytes` raises an OSError if the disk is full; safetensors raises an error of its own.
    (directory / "weights.safetensors").write_bytes(safetensors.torch.save(checkpoint.weights))
    (directory / "optimizer.safetensors").write_bytes(safetensors.torch.save(checkpoint.optimizer))
    (directory / "lanes.safetensors").write_bytes(safetensors.numpy.save(lanes))


def metadata_as_json(metadata: CheckpointMetadata) -> dict[str, Any]:
    """The metadata of a checkpoint as JSON types."""
    return {
        "config": metadata.config.model_dump(mode="json"),
        "action_names": metadata.action_names,
        "counters": asdict(metadata.counters),
        "recent_scores": metadata.recent_scores,
    }


def metadata_from_json(text: dict[str, Any], path: Path) -> CheckpointMetadata:
    """The inverse of `metadata_as_json`. Other entries of `text` are ignored.

    Raises:
        CorruptUnitError: it is not the metadata of a checkpoint; the message names `path`, the file of `text`.
    """
    try:
        found = {name: text[name] for name in _METADATA_FIELDS}
        if isinstance(found["config"], dict):
            found["config"] = {**FIELDS_OF_RELEASE_0_1, **found["config"]}
        metadata = _metadata.validate_python(found)
        GameSettings.of(metadata.config)  # checks the game, which becomes part of file names
        return metadata
    except ValidationError as error:
        first = error.errors()[0]
        raise CorruptUnitError(
            f"{path}: {'.'.join(str(part) for part in first['loc'] if part != 'config')}: {first['msg']}"
        ) from None
    except (KeyError, ValueError) as error:
        raise CorruptUnitError(f"{path} is not of this version: {error}") from None


def read_metadata(directory: Path) -> CheckpointMetadata:
    """The metadata of the checkpoint in a verified unit, without its tensors.

    Raises:
        CorruptUnitError: the file is not that of a checkpoint.
        NewerFormatError: a newer release wrote the file.
    """
    path = directory / "checkpoint.json"
    try:
        text = json.loads(path.read_bytes())
        check_format(text.pop("format", 1), path, newest=FORMAT)
        if set(text) != _METADATA_FIELDS or set(text["counters"]) != _COUNTERS:
            raise ValueError(f"it must have exactly {', '.join(sorted(_METADATA_FIELDS))}")
        return metadata_from_json(text, path)
    except (*_PARSE_ERRORS, *_NO_FILE) as error:
        raise CorruptUnitError(f"{path} is not of a checkpoint of this version: {error}") from None


def read_checkpoint(directory: Path) -> Checkpoint:
    """The checkpoint in a verified unit.

    Raises:
        CorruptUnitError: the files are not those of a checkpoint.
        NewerFormatError: a newer release wrote the files.
    """
    metadata = read_metadata(directory)
    try:
        return Checkpoint(
            metadata=metadata,
            histories=histories_from_arrays(safetensors.numpy.load((directory / "lanes.safetensors").read_bytes())),
            weights=safetensors.torch.load((directory / "weights.safetensors").read_bytes()),
            optimizer=safetensors.torch.load((directory / "optimizer.safetensors").read_bytes()),
        )
    except (*_PARSE_ERRORS, *_NO_FILE, SafetensorError) as error:
        raise CorruptUnitError(f"{directory} is not a checkpoint of this version: {error}") from None
