"""Exported agents as files: weights in safetensors, the rest in JSON, and a model card. None can contain code."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import safetensors.torch
from safetensors import SafetensorError

from dqn.evaluation.evaluation import Evaluation
from dqn.export.inference_spec import ExportedAgent, inference_spec, network_weights, plain_weights, untrained_network
from dqn.metrics import SCORE_EPISODE, Curve
from storage.errors import CorruptUnitError, first_problem
from storage.format_version import check_format
from storage.formats.checkpoint import metadata_as_json, metadata_from_json

CONFIG, WEIGHTS, CARD = "config.json", "weights.safetensors", "README.md"
TRAINING = "training.json"  # curves of the training by metric: states and values; absent if they are not known
MOST_POINTS = 400  # of each of these curves, except that of the episodes, whose mean is drawn
FORMAT = 4  # 3 is that of release 0.1.0, in whose configuration some fields have other names
OLDEST_FORMAT = 3


def write_export(directory: Path, exported: ExportedAgent, card: str) -> None:
    """Write the files of an exported agent into `directory`.

    Raises:
        OSError: a full disk, or any other failure to write.
    """
    network = untrained_network(exported.metadata)
    weights = safetensors.torch.save(plain_weights(exported.weights, network))
    about = {
        "format": FORMAT,
        "game": exported.metadata.config.game,
        "play": inference_spec(exported.metadata, network),
        "run": {"id": exported.run_id, "name": exported.run_name, "checkpoint": exported.checkpoint},
        "evaluation": exported.evaluation.as_dict() if exported.evaluation else None,
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        **metadata_as_json(exported.metadata),
    }
    (directory / WEIGHTS).write_bytes(weights)
    (directory / CONFIG).write_text(json.dumps(about, indent=1) + "\n")
    (directory / CARD).write_text(card)
    if exported.curves:
        curves = {
            name: curve if name == SCORE_EPISODE else curve.thinned(MOST_POINTS)
            for name, curve in exported.curves.items()
        }
        content = {
            name: {"states": [int(each) for each in curve.states], "values": [float(f"{v:.6g}") for v in curve.values]}
            for name, curve in curves.items()
        }
        (directory / TRAINING).write_text(json.dumps(content) + "\n")


def read_export(directory: Path) -> ExportedAgent:
    """The exported agent in `directory`.

    Raises:
        CorruptUnitError: the files are not those of an exported agent, or the weights were changed.
        NewerFormatError: a newer release wrote the files.
    """
    path = directory / CONFIG
    try:
        about = json.loads(path.read_bytes())
        check_format(about["format"], path, newest=FORMAT, oldest=OLDEST_FORMAT)
        weights = (directory / WEIGHTS).read_bytes()
        if hashlib.sha256(weights).hexdigest() != about["weights_sha256"]:
            raise CorruptUnitError(f"{directory / WEIGHTS} is not what was exported: its SHA-256 differs")
        metadata = metadata_from_json(about, path)
        return ExportedAgent(
            run_id=str(about["run"]["id"]),
            run_name=str(about["run"]["name"]),
            checkpoint=str(about["run"]["checkpoint"]),
            metadata=metadata,
            weights=network_weights(safetensors.torch.load(weights), untrained_network(metadata)),
            evaluation=Evaluation.from_dict(about["evaluation"]) if about["evaluation"] else None,
            curves=_read_curves(directory / TRAINING),
        )
    except (
        OSError,
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        IndexError,
        RuntimeError,
        SafetensorError,
    ) as error:
        raise CorruptUnitError(f"{directory} is not an agent of this version: {first_problem(error)}") from None


def _read_curves(path: Path) -> dict[str, Curve]:
    if not path.exists():
        return {}
    return {
        name: Curve(np.array(curve["states"], float), np.array(curve["values"], float))
        for name, curve in json.loads(path.read_bytes()).items()
    }
