"""One training cycle without storage equals the cycle of the tasks; see also tests/tasks/test_tasks_and_cycle.py."""

from __future__ import annotations

import pytest
import torch

import dqn.envs.histories
from dqn.checkpoint import Counters
from dqn.config import make_config
from dqn.cycle import train
from dqn.hardware import resolve

SMALL = {"lanes": 4, "replay_states": 64, "batch_size": 16, "network": "small", "threads": 1}


def test_training_yields_a_checkpoint_after_each_cycle() -> None:
    config = resolve(make_config("fast", SMALL))
    found = [checkpoint.metadata.counters for checkpoint in train(config, 2)]
    assert found == [Counters(1, 64, 0, 4), Counters(2, 128, 0, 8)]


def test_training_changes_the_weights_the_same_way_each_time() -> None:
    config = resolve(make_config("fast", SMALL))
    runs = [[{**checkpoint.weights} for checkpoint in train(config, 1)][-1] for _ in range(2)]
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
    (other,) = train(resolve(make_config("fast", {**SMALL, "seed": 1})), 1)
    assert not all(torch.equal(runs[0][name], other.weights[name]) for name in runs[0])


def test_lanes_restart_in_midgame_after_their_cycle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dqn.envs.histories, "MIDGAME_CYCLES", 1)
    config = resolve(make_config("fast", {**SMALL, "midgame_lanes": 2}))
    first, second = (checkpoint.histories for checkpoint in train(config, 2))
    assert [history.episode for history in second[2:]] == [history.episode + 4 for history in first[2:]]
