"""Checkpoints as files: tensors in safetensors, the rest in JSON. Nothing that could run code."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import safetensors.numpy
import safetensors.torch
from pydantic import ValidationError
from safetensors import SafetensorError

from dqn.checkpoint import Checkpoint, Counters, Facts, histories_as_arrays, histories_from_arrays
from dqn.config import TrainConfig
from storage.errors import CorruptUnitError


def write_checkpoint(directory: Path, checkpoint: Checkpoint) -> None:
    """Write the files of a checkpoint into `directory`."""
    facts = checkpoint.facts
    text = {
        "config": facts.config.model_dump(mode="json"),
        "action_names": facts.action_names,
        "counters": asdict(facts.counters),
        "recent_scores": facts.recent_scores,
    }
    (directory / "checkpoint.json").write_text(json.dumps(text, indent=1) + "\n")
    safetensors.torch.save_file(checkpoint.weights, directory / "weights.safetensors")
    safetensors.torch.save_file(checkpoint.optimizer, directory / "optimizer.safetensors")
    lanes = histories_as_arrays(checkpoint.histories)
    safetensors.numpy.save_file(lanes, directory / "lanes.safetensors")


def read_facts(directory: Path) -> Facts:
    """The small part of the checkpoint in a verified unit.

    Raises:
        CorruptUnitError: the file is not a checkpoint of this version.
    """
    path = directory / "checkpoint.json"
    try:
        facts = json.loads(path.read_bytes())
        return Facts(
            config=TrainConfig.model_validate(facts["config"]),
            action_names=tuple(facts["action_names"]),
            counters=Counters(**facts["counters"]),
            recent_scores=tuple(facts["recent_scores"]),
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise CorruptUnitError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except (KeyError, TypeError, ValueError, FileNotFoundError) as error:
        raise CorruptUnitError(f"{path} is not of a checkpoint of this version: {error}") from None


def read_checkpoint(directory: Path) -> Checkpoint:
    """The checkpoint in a verified unit.

    Raises:
        CorruptUnitError: the files are not a checkpoint of this version.
    """
    facts = read_facts(directory)
    try:
        return Checkpoint(
            facts=facts,
            histories=histories_from_arrays(safetensors.numpy.load_file(directory / "lanes.safetensors")),
            weights=safetensors.torch.load_file(directory / "weights.safetensors"),
            optimizer=safetensors.torch.load_file(directory / "optimizer.safetensors"),
        )
    except (KeyError, TypeError, ValueError, FileNotFoundError, SafetensorError) as error:
        raise CorruptUnitError(f"{directory} is not a checkpoint of this version: {error}") from None
