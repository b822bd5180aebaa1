"""Models in MLflow: one for each checkpoint of a run that was evaluated or shared."""

from __future__ import annotations

import re

from mlflow.entities import LoggedModelStatus, Run
from mlflow.tracking import MlflowClient

CHECKPOINT_TAG = "dqn.checkpoint"  # of models and their registered versions: the digest of the checkpoint


def model_of(client: MlflowClient, run: Run, cycle: int, checkpoint: str) -> str:
    """The id of the model to which the evaluations of a checkpoint belong.

    It is created when it is first asked for. Its params are those of the run. It has no files until it is shared.

    Args:
        client: of the store that has the run.
        run: the run of the checkpoint.
        cycle: of the checkpoint.
        checkpoint: digest of the checkpoint.
    """
    experiment = run.info.experiment_id
    where = f"source_run_id = '{run.info.run_id}' and tags.`{CHECKPOINT_TAG}` = '{checkpoint}'"
    model = next(iter(client.search_logged_models([experiment], where)), None) or client.create_logged_model(
        experiment,
        model_name(str(run.info.run_name), cycle),
        run.info.run_id,
        {CHECKPOINT_TAG: checkpoint},
        run.data.params,
    )
    if model.status != LoggedModelStatus.READY:
        client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    return str(model.model_id)


def model_name(run_name: str, cycle: int) -> str:
    """The name of the model that a checkpoint is, without the characters that MLflow refuses."""
    return re.sub(r"[/:.%\"']", "-", f"{run_name}-{cycle:05d}")
