"""A run with every option at once is restored, verified, evaluated and inspected like any other run."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from pipeline import run_cycles

import dqn.envs.histories
from dqn.envs.games import action_names
from flows.commands.inspection import inspect_run
from flows.commands.verify import verify_run
from flows.parameters import requested_config
from storage.runs import StoredRun, create_run
from storage.units.unit import CHECKPOINT
from tasks import process_cache
from tasks.evaluate import evaluate

SMALL = {"lanes": 4, "lane_groups": 2, "replay_states": 96, "batch_size": 32, "threads": 2, "keep_cycles": 3}
OPTIONS = {
    "network": "small",
    "frame_stack": True,
    "frame_pooling": True,
    "noop_max": 30,
    "midgame_lanes": 2,
    "full_action_set": True,
    "reward_clip": 0,
    "rescale_values": True,
    "replay_cycles": 2,
    "overlap": "yes",
    "dropout": 0.2,
    "l2": 1e-4,
    "adapt_learning_rate": True,
    "max_epochs": 3,
    "evaluation_episodes": 2,
    "episode_frames_limit": 240,
}

pytestmark = pytest.mark.usefixtures("home")


def created(name: str) -> StoredRun:
    config = requested_config("fast", {**SMALL, **OPTIONS})
    return create_run(config, action_names(config.game, config.full_action_set), name, {})


def test_run_with_all_options_is_restored_and_inspected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dqn.envs.histories, "MIDGAME_CYCLES", 2)
    run = created("all-options")
    checkpoint = run_cycles(run, 3)
    uncached = run_cycles(created("all-options-uncached"), 3, between=process_cache.clear)
    assert checkpoint.digest == uncached.digest
    after = run.checkpoint(run.unit(CHECKPOINT, 2)).histories
    assert [math.isnan(history.score) for history in after] == [False, False, True, True]
    found = verify_run(run, replay=True)
    assert found.problems == [] and found.frames == 3 * 96
    process_cache.clear()
    assert evaluate.fn(run.run_id, checkpoint).metrics["evaluation/steps"] > 0
    report = Path(inspect_run(run))
    assert report.is_file() and "all-options" in report.read_text()
