from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from dqn.checkpoint import (
    Checkpoint,
    CheckpointMetadata,
    Counters,
    first_checkpoint,
    histories_as_arrays,
    histories_from_arrays,
    restore_learner,
)
from dqn.config import TrainConfig, make_config
from dqn.envs.histories import LaneHistory, first_histories
from dqn.learning.learner import Learner
from dqn.learning.optimization import train_on
from dqn.learning.replay import ReplayMemory

CPU = torch.device("cpu")
MakeMemory = Callable[[int], ReplayMemory]


def cpu_config(**overrides: Any) -> TrainConfig:
    small = {"device": "cpu", "precision": "float32", "lanes": 3, "batch_size": 2, "max_epochs": 1}
    return make_config("fast", {**small, **overrides})


def checkpoint_of(learner: Learner) -> Checkpoint:
    weights, optimizer = learner.state_dict()
    # Copied, as if written to a file, so that the learner does not change it later.
    weights, optimizer = ({name: one.clone() for name, one in each.items()} for each in (weights, optimizer))
    metadata = CheckpointMetadata(learner.config, ("NOOP", "LEFT", "RIGHT"))
    return Checkpoint(metadata, first_histories(learner.config.lanes), weights, optimizer)


def assert_equal_learners(first: Learner, second: Learner) -> None:
    for ours, theirs in zip(first.state_dict(), second.state_dict(), strict=True):
        assert ours.keys() == theirs.keys()
        assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


@pytest.mark.parametrize(
    ("optimizer", "precision", "ema_decay"),
    [
        ("rmsprop", "float32", 0),
        ("adam", "float32", 0),
        ("radam", "float32", 0.9),
        ("radam", "bfloat16", 0),
        ("radam", "bfloat16", 0.9),
    ],
)
def test_restored_learner_trains_as_the_original(
    optimizer: str, precision: str, ema_decay: float, toy_memory: MakeMemory
) -> None:
    memory = toy_memory(4)
    config = cpu_config(optimizer=optimizer, precision=precision, ema_decay=ema_decay)
    learner = Learner(config, 3, CPU)
    train_on(learner, memory, 1, config.scheduled(0))
    checkpoint = checkpoint_of(learner)
    assert checkpoint.optimizer
    restored = restore_learner(checkpoint, CPU)
    assert np.array_equal(learner.estimate(memory.states.numpy()), restored.estimate(memory.states.numpy()))
    results = [train_on(one, memory, 2, config.scheduled(0)) for one in (learner, restored)]
    assert np.array_equal(results[0].losses, results[1].losses)
    assert_equal_learners(learner, restored)
    # Without the optimizer's state the result is another one.
    forgetful = restore_learner(replace(checkpoint, optimizer={}), CPU)
    train_on(forgetful, memory, 2, config.scheduled(0))
    weights, other = learner.state_dict().weights, forgetful.state_dict().weights
    assert any(not torch.equal(weights[name], other[name]) for name in weights)


def test_untrained_learner_is_restored(toy_memory: MakeMemory) -> None:
    config = cpu_config()
    checkpoint = first_checkpoint(config, ["NOOP", "LEFT", "RIGHT"])
    restored, fresh = restore_learner(checkpoint, CPU), Learner(config, 3, CPU)
    for learner in (restored, fresh):
        train_on(learner, toy_memory(4), 1, config.scheduled(0))
    assert_equal_learners(restored, fresh)


def test_first_checkpoint_has_played_nothing() -> None:
    config = cpu_config(seed=4)
    checkpoint = first_checkpoint(config, ["A", "B"])
    assert checkpoint.config == config and checkpoint.metadata.action_names == ("A", "B")
    assert checkpoint.metadata.counters == Counters(0, 0, 0, 0) and checkpoint.metadata.recent_scores == ()
    assert [len(history.actions) for history in checkpoint.histories] == [0, 0, 0]
    trained = {f"{index}.trained" for index in range(len(checkpoint.weights))}
    assert set(checkpoint.optimizer) == trained, "an optimizer that took no step has no state"
    assert first_checkpoint(cpu_config(ema_decay=0), ["A", "B"]).optimizer == {}


def test_checkpoint_is_not_changed_by_restored_learner(toy_memory: MakeMemory) -> None:
    config = cpu_config()
    checkpoint = first_checkpoint(config, ["A", "B", "C"])
    before = {name: weight.clone() for name, weight in checkpoint.weights.items()}
    train_on(restore_learner(checkpoint, CPU), toy_memory(4), 1, config.scheduled(0))
    assert all(torch.equal(checkpoint.weights[name], weight) for name, weight in before.items())


def test_weights_of_another_network_are_refused() -> None:
    checkpoint = first_checkpoint(cpu_config(normalize=True), ["A", "B"])
    metadata = replace(checkpoint.metadata, config=cpu_config(normalize=False))
    with pytest.raises(ValueError, match="do not fit its configuration") as raised:
        restore_learner(replace(checkpoint, metadata=metadata), CPU)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("key", ["99.exp_avg", "x.exp_avg", "exp_avg"])
def test_optimizer_state_of_an_unknown_weight_is_refused(key: str) -> None:
    checkpoint = first_checkpoint(cpu_config(), ["A", "B"])
    with pytest.raises(ValueError, match="there is no weight of number"):
        restore_learner(replace(checkpoint, optimizer={key: torch.zeros(2)}), CPU)


def test_optimizer_state_of_another_shape_is_refused() -> None:
    checkpoint = first_checkpoint(cpu_config(), ["A", "B"])
    with pytest.raises(ValueError, match=r"0\.exp_avg is \(2,\), not"):
        restore_learner(replace(checkpoint, optimizer={"0.exp_avg": torch.zeros(2)}), CPU)


@pytest.mark.parametrize(
    "lengths", [[0, 0, 0], [3, 1, 2], [0, 4, 0], [5, 0, 0], [0, 0, 5], [7]], ids=lambda lengths: str(lengths)
)
def test_histories_round_trip_as_arrays(lengths: list[int]) -> None:
    draws = np.random.default_rng(0)
    histories = [
        LaneHistory(40 + lane, 10 + lane, draws.integers(18, size=length).astype(np.uint8), 1.5 * lane, 9 * length)
        for lane, length in enumerate(lengths)
    ]
    found = histories_from_arrays(histories_as_arrays(histories))
    assert [one.actions.dtype for one in found] == [np.uint8] * len(lengths)
    for ours, theirs in zip(histories, found, strict=True):
        assert np.array_equal(ours.actions, theirs.actions)
        assert replace(ours, actions=None) == replace(theirs, actions=None)


def test_histories_as_arrays_are_flat() -> None:
    arrays = histories_as_arrays([LaneHistory(5, 3, np.array([1, 2], np.uint8), 2.5, 7), *first_histories(1)])
    assert {name: value.tolist() for name, value in arrays.items()} == {
        "episode": [5, 0],
        "seeded_episode": [3, 0],
        "score": [2.5, 0],
        "steps": [7, 0],
        "lengths": [2, 0],
        "actions": [1, 2],
    }
