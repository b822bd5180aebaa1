"""The tasks compute what `dqn.cycle.train` computes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pipeline import run_cycles

from dqn.cycle import train
from dqn.envs.games import action_names
from flows.parameters import requested_config
from storage.runs import create_run
from storage.units.unit import CHECKPOINT

SETTINGS = {"lanes": 4, "lane_groups": 2, "replay_states": 64, "batch_size": 16, "threads": 2, "network": "small"}


@pytest.mark.usefixtures("home")
def test_tasks_compute_what_the_cycle_computes() -> None:
    config = requested_config("fast", SETTINGS)
    run = create_run(config, action_names(config.game), "tasks", {})
    run_cycles(run, 2)
    stored = run.checkpoint(run.unit(CHECKPOINT, 2))
    _, checkpoint = train(config, 2)
    assert checkpoint.metadata == stored.metadata
    for found, expected in zip(checkpoint.histories, stored.histories, strict=True):
        np.testing.assert_equal(vars(found), vars(expected))
    for name in ("weights", "optimizer"):
        found, expected = getattr(checkpoint, name), getattr(stored, name)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in found)
