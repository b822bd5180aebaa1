"""The tasks compute what `dqn.cycle.train` computes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pipeline import run_cycles

import dqn.envs.histories
from dqn.cycle import train
from dqn.envs.games import action_names
from flows.parameters import requested_config
from storage.runs import create_run
from storage.units.unit import CHECKPOINT

SETTINGS = {"lanes": 4, "lane_groups": 2, "replay_states": 64, "batch_size": 16, "threads": 2, "network": "small"}


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize("overlap", ["no", "yes"])
def test_tasks_compute_what_the_cycle_computes(overlap: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dqn.envs.histories, "MIDGAME_CYCLES", 2)
    config = requested_config("fast", {**SETTINGS, "overlap": overlap, "midgame_lanes": 1})
    run = create_run(config, action_names(config.game), f"tasks-{overlap}", {})
    run_cycles(run, 3)
    stored = run.checkpoint(run.unit(CHECKPOINT, 3))
    *_, checkpoint = train(config, 3)
    assert checkpoint.metadata == stored.metadata
    for found, expected in zip(checkpoint.histories, stored.histories, strict=True):
        np.testing.assert_equal(vars(found), vars(expected))
    for name in ("weights", "optimizer"):
        found, expected = getattr(checkpoint, name), getattr(stored, name)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in found)
