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
from dqn.optimization import Learner

RECENT_EPISODES = 100
TRAINED = "trained"
Count = Annotated[int, Field(ge=0)]


@dataclass(frozen=True)
class Counters:
    """What a run has done so far."""

    cycle: Count = 0
    states: Count = 0
    episodes: Count = 0
    updates: Count = 0  # optimizer steps


@dataclass(frozen=True)
class Facts:
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

    facts: Facts
    histories: list[LaneHistory]
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]  # "<index of the weight>.<name>": state of the optimizer; `trained`: what it steps

    @property
    def config(self) -> TrainConfig:
        """The configuration of the run."""
        return self.facts.config


def first_checkpoint(config: TrainConfig, action_names: list[str]) -> Checkpoint:
    """The state of a new run of a resolved configuration."""
    learner = Learner(config, len(action_names), torch.device("cpu"))
    return Checkpoint(Facts(config, tuple(action_names)), first_histories(config.lanes), *learner_tensors(learner))


def learner_tensors(learner: Learner) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights and the optimizer state of `learner` by name, on the CPU.

    On a CPU most are its own, not copies: they change when it is trained again.
    """
    weights = {name: _plain(tensor) for name, tensor in learner.network.state_dict().items()}
    state = learner.optimizer.state_dict()["state"]
    optimizer = {f"{index}.{name}": _plain(tensor) for index, entry in state.items() for name, tensor in entry.items()}
    if learner.config.average_decay:  # else the network's own weights are those in training
        optimizer |= {f"{index}.{TRAINED}": _plain(tensor) for index, tensor in enumerate(learner.weights)}
    return weights, optimizer


def restore_learner(checkpoint: Checkpoint, device: torch.device) -> Learner:
    """The learner that `checkpoint` was made from.

    Raises:
        ValueError: the weights are not those of the configuration's network.
    """
    learner = Learner(checkpoint.config, len(checkpoint.facts.action_names), device)
    fill_learner(learner, checkpoint.weights, checkpoint.optimizer)
    return learner


def fill_learner(learner: Learner, weights: dict[str, Tensor], optimizer: dict[str, Tensor]) -> None:
    """Make `learner` the one that these tensors are of, by `learner_tensors`; they are copied.

    Raises:
        ValueError: the weights are not those of its network.
    """
    try:
        learner.network.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"the checkpoint's weights do not fit its configuration: {error}") from None
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in optimizer.items():
        index, name = key.split(".", 1)
        if name == TRAINED:
            with torch.no_grad():
                learner.weights[int(index)].copy_(tensor)
            continue
        # A copy, in the order of memory that the optimizer itself would use.
        like = learner.weights[int(index)] if tensor.ndim else tensor
        state.setdefault(int(index), {})[name] = torch.empty_like(like).copy_(tensor)
    groups = learner.optimizer.state_dict()["param_groups"]
    learner.optimizer.load_state_dict({"state": state, "param_groups": groups})
    learner.refresh()


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


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous()
