"""The complete state of a run after a cycle, which determines the rest of the run."""

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
    """Totals of a run so far."""

    cycle: Count = 0
    states: Count = 0
    episodes: Count = 0
    updates: Count = 0  # optimizer steps


@dataclass(frozen=True)
class CheckpointMetadata:
    """The small part of a checkpoint: configuration, actions, totals and recent scores."""

    config: TrainConfig
    action_names: tuple[str, ...]
    counters: Counters = Counters()
    recent_scores: tuple[float, ...] = ()  # of the last RECENT_EPISODES finished episodes, oldest first


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run between two cycles. Random draws have no state, because each one comes from its key.

    A checkpoint that was made from a learner shares tensors with it, so it is valid until the learner is trained again.
    """

    metadata: CheckpointMetadata
    histories: list[LaneHistory]
    weights: dict[str, Tensor]  # both as in LearnerState
    optimizer: dict[str, Tensor]

    @property
    def config(self) -> TrainConfig:
        """The configuration of the run."""
        return self.metadata.config


def first_checkpoint(config: TrainConfig, action_names: list[str]) -> Checkpoint:
    """The state of a new run of a resolved configuration, before its first cycle."""
    learner = Learner(config, len(action_names), torch.device("cpu"))
    return Checkpoint(
        CheckpointMetadata(config, tuple(action_names)), first_histories(config.lanes), *learner.state_dict()
    )


def restore_learner(checkpoint: Checkpoint, device: torch.device) -> Learner:
    """A learner on `device` with the weights and the optimizer state of `checkpoint`.

    Raises:
        ValueError: the weights have other names or shapes than those of the configuration's network.
    """
    learner = Learner(checkpoint.config, len(checkpoint.metadata.action_names), device)
    learner.load_state_dict(LearnerState(checkpoint.weights, checkpoint.optimizer))
    return learner


def histories_as_arrays(histories: list[LaneHistory]) -> dict[str, np.ndarray]:
    """Histories of L lanes as flat arrays: one (L,) for each field, and the actions of all lanes concatenated."""
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
        ValueError: the lengths of the arrays do not match.
    """
    lengths, played = arrays["lengths"], arrays["actions"]
    if played.dtype != np.uint8 or (lengths < 0).any() or lengths.sum() != len(played):
        raise ValueError(
            f"the lanes' actions are {len(played)} numbers of {played.dtype}; uint8 and the sum of lengths are expected"
        )
    actions = np.split(arrays["actions"], np.cumsum(arrays["lengths"])[:-1])
    names = ("episode", "seeded_episode", "score", "steps")
    return [
        LaneHistory(int(episode), int(seeded), played, float(score), int(steps))
        for episode, seeded, score, steps, played in zip(*(arrays[name] for name in names), actions, strict=True)
    ]
