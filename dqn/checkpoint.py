"""All that a run is after a cycle: from it and the configuration, the rest of the run follows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from dqn.config import TrainConfig
from dqn.envs.histories import LaneHistory, first_histories
from dqn.learning.learner import Learner, LearnerState

RECENT_EPISODES = 100
Count = Annotated[int, Field(ge=0)]


@dataclass(frozen=True)
class Counters:
    """What a run has done so far."""

    cycle: Count = 0
    states: Count = 0
    episodes: Count = 0
    updates: Count = 0  # optimizer steps


@dataclass(frozen=True)
class CheckpointMetadata:
    """The small part of a checkpoint: what the run is, and how far it is."""

    config: TrainConfig
    action_names: tuple[str, ...]
    counters: Counters = Counters()
    recent_scores: tuple[float, ...] = ()  # of the last 100 finished episodes, oldest first


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run between two cycles. Random draws need no state: each has its key.

    One that was just made shares tensors with its learner, and holds only until that is trained again.
    """

    metadata: CheckpointMetadata
    histories: list[LaneHistory]
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]  # "<index of the weight>.<name>": state of the optimizer; `trained`: what it steps

    @property
    def config(self) -> TrainConfig:
        """The configuration of the run."""
        return self.metadata.config


def first_checkpoint(config: TrainConfig, action_names: list[str]) -> Checkpoint:
    """The state of a new run of a resolved configuration."""
    learner = Learner(config, len(action_names), torch.device("cpu"))
    return Checkpoint(
        CheckpointMetadata(config, tuple(action_names)), first_histories(config.lanes), *learner.state_dict()
    )


def restore_learner(checkpoint: Checkpoint, device: torch.device) -> Learner:
    """The learner that `checkpoint` was made from.

    Raises:
        ValueError: the weights are not those of the configuration's network.
    """
    learner = Learner(checkpoint.config, len(checkpoint.metadata.action_names), device)
    learner.load_state_dict(LearnerState(checkpoint.weights, checkpoint.optimizer))
    return learner


def histories_as_arrays(histories: list[LaneHistory]) -> dict[str, np.ndarray]:
    """Lane histories as flat arrays: one (L,) for each field, and all actions one after the other."""
    return {
        "episode": np.array([history.episode for history in histories], np.int64),
        "seeded_episode": np.array([history.seeded_episode for history in histories], np.int64),
        "score": np.array([history.score for history in histories], np.float64),
        "steps": np.array([history.steps for history in histories], np.int64),
        "lengths": np.array([len(history.actions) for history in histories], np.int64),
        "actions": np.concatenate([history.actions for history in histories]).astype(np.uint8),
    }


def histories_from_arrays(arrays: dict[str, np.ndarray]) -> list[LaneHistory]:
    """The inverse of `histories_as_arrays`.

    Raises:
        ValueError: the arrays do not fit together.
    """
    lengths, played = arrays["lengths"], arrays["actions"]
    if played.dtype != np.uint8 or (lengths < 0).any() or lengths.sum() != len(played):
        raise ValueError("the lanes' actions do not fit their lengths")
    actions = np.split(arrays["actions"], np.cumsum(arrays["lengths"])[:-1])
    names = ("episode", "seeded_episode", "score", "steps")
    return [
        LaneHistory(int(episode), int(seeded), played, float(score), int(steps))
        for episode, seeded, score, steps, played in zip(*(arrays[name] for name in names), actions, strict=True)
    ]
