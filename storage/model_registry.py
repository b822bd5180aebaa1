"""Shared agents in MLflow's model registry: one model for each game, whose best version has the alias champion."""

from __future__ import annotations

import json
import re
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow.exceptions
import numpy as np
import torch
from mlflow.artifacts import download_artifacts
from mlflow.entities import LoggedModelStatus
from mlflow.entities.model_registry import ModelVersion
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec

from dqn.envs.games import game_title
from dqn.evaluation.evaluation import Evaluation
from dqn.export.inference_spec import ExportedAgent
from dqn.learning.networks import QNetwork
from storage.errors import StorageError
from storage.formats.agent_export import read_export
from storage.logged_models import CHECKPOINT_TAG, model_name, model_of
from storage.tracking import Tracking
from storage.urls import REGISTERED_MODEL, directory_of, is_local

CHAMPION = "champion"
FOLDER = "agent"  # folder of a model with the files of `storage.formats.agent_export`
PROTOCOL, MEAN = "dqn.protocol", "dqn.mean_score"  # tags of a version


def protocol_text(evaluation: Evaluation, frames_limit: int) -> str:
    """Text that two evaluations have in common if their scores are comparable."""
    return json.dumps({**vars(evaluation.protocol), "episode_frames_limit": frames_limit}, sort_keys=True)


def champion_address(game: str) -> str:
    """Address of the champion of a game."""
    return f"{REGISTERED_MODEL}{game_title(game)}@{CHAMPION}"


def champion_of(tracking: Tracking, game: str) -> ModelVersion | None:
    """The champion of a game, if it has one."""
    return _version(tracking, champion_address(game))


def promote(tracking: Tracking, version: ModelVersion, exported: ExportedAgent) -> None:
    """Make a version the champion of its game, and tag it with the protocol and the mean score of its evaluation."""
    assert exported.evaluation is not None
    limit = exported.metadata.config.episode_frames_limit
    tags = {
        PROTOCOL: protocol_text(exported.evaluation, limit),
        MEAN: repr(exported.evaluation.summary()["mean"]),
    }
    for name, value in tags.items():
        tracking.client.set_model_version_tag(version.name, version.version, name, value)
    tracking.client.set_registered_model_alias(version.name, CHAMPION, version.version)


def shared_version(tracking: Tracking, exported: ExportedAgent) -> ModelVersion | None:
    """The version as which this checkpoint was already shared, if any."""
    name = game_title(exported.metadata.config.game)
    found = tracking.client.search_model_versions(
        f"name = '{name}' and tags.`{CHECKPOINT_TAG}` = '{exported.checkpoint}'"
    )
    return next(iter(found), None)


def share(tracking: Tracking, exported: ExportedAgent, network: QNetwork, folder: Path, card: str) -> ModelVersion:
    """Register a network as a version of its game's model: exported by torch, with signature and input example.

    Args:
        tracking: the store of the registry. The version is linked to the agent's run if the store has it.
        exported: the agent.
        network: its network, in float32 on the CPU.
        folder: a temporary folder, with the files of the exported agent in `agent` below it.
        card: description of the version, in Markdown.
    """
    client, title = tracking.client, game_title(exported.metadata.config.game)
    run_id = exported.run_id if tracking.has_run(exported.run_id) else None
    model = folder / "model"
    _save(network, len(exported.metadata.action_names), model)
    (folder / FOLDER).rename(model / FOLDER)
    game = exported.metadata.config.game
    cycle = exported.metadata.counters.cycle
    if run_id:
        model_id = model_of(client, tracking.get_run(run_id), cycle, exported.checkpoint)
    else:
        name = model_name(exported.run_name, cycle)
        model_id = client.create_logged_model(tracking.experiment(game), name).model_id
    client.log_model_artifacts(model_id, str(model))
    logged = client.finalize_logged_model(model_id, LoggedModelStatus.READY)
    if not client.search_registered_models(f"name = '{title}'"):
        client.create_registered_model(
            title, description=f"Agents that play {title}; `{CHAMPION}` is the best of them."
        )
    version: ModelVersion = client.create_model_version(
        title,
        source=logged.artifact_location,
        run_id=run_id,
        tags={CHECKPOINT_TAG: exported.checkpoint},
        description=card,
        # Without a run, MLflow would look for the logged model in its default store instead of this one.
        model_id=logged.model_id if run_id else None,
    )
    return version


def open_shared(tracking: Tracking, address: str) -> ExportedAgent:
    """The agent at `models:/NAME@champion` or `models:/NAME/VERSION`.

    Raises:
        ValueError: there is no such model.
        StorageError: it is neither on a file system of this machine nor on S3, or it is not an agent of this project.
    """
    if not re.fullmatch(rf"{REGISTERED_MODEL}[^/@]+(@[^/@]+|/\d+)", address):
        raise ValueError(f"{address!r} names no model; write it as models:/Breakout@champion or models:/Breakout/3")
    version = _version(tracking, address)
    if version is None:
        there = ", ".join(f"{REGISTERED_MODEL}{model.name}" for model in tracking.client.search_registered_models())
        raise ValueError(f"there is no model {address}; there are: {there or 'none'}; `dqn share RUN` adds one")
    source = str(version.source)
    try:
        local = is_local(source)
    except ValueError:
        raise StorageError(f"the model {address} is at {source}, which is neither a file system nor S3") from None
    if local:
        return read_export(directory_of(source) / FOLDER)
    with tempfile.TemporaryDirectory() as folder:
        return read_export(Path(download_artifacts(artifact_uri=f"{source}/{FOLDER}", dst_path=folder)))


def _version(tracking: Tracking, address: str) -> ModelVersion | None:
    name, alias, which = re.split("([@/])", address.removeprefix(REGISTERED_MODEL))
    try:
        if alias == "@":
            return tracking.client.get_model_version_by_alias(name, which)
        return tracking.client.get_model_version(name, which)
    except mlflow.exceptions.MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def _save(network: QNetwork, actions: int, directory: Path) -> None:
    """Write an MLflow model of `network` without pickle."""
    import mlflow.pytorch  # takes seconds, and only `dqn share` needs it

    shape = (-1, *network.state_shape)
    signature = ModelSignature(
        Schema([TensorSpec(np.dtype(np.uint8), shape)]), Schema([TensorSpec(np.dtype(np.float32), (-1, actions))])
    )
    with _quiet():
        mlflow.pytorch.save_model(
            network.to(memory_format=torch.contiguous_format),  # type: ignore[call-overload]
            str(directory),
            signature=signature,
            input_example=np.zeros((2, *network.state_shape), np.uint8),  # one state would fix their number
            serialization_format="pt2",
            pip_requirements=[f"torch=={torch.__version__.partition('+')[0]}", f"mlflow=={mlflow.__version__}"],
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress warnings of torch and MLflow during the block."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
