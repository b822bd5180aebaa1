"""A run with every option at once is restored, verified, evaluated and inspected like any other."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

import dqn.envs.histories
from dqn.envs.games import action_names
from flows.commands.inspection import inspect_run
from flows.commands.verify import verify_run
from flows.parameters import requested_config
from flows.train import publish_and_prune
from storage.runs import StoredRun, create_run
from storage.units.unit import CHECKPOINT
from tasks import process_cache
from tasks.collect_episodes import collect_episodes
from tasks.evaluate import evaluate
from tasks.optimize import optimize
from tasks.update_q_values import update_q_values

SMALL = {"lanes": 4, "lane_groups": 2, "replay_states": 160, "batch_size": 16, "threads": 2, "keep_cycles": 3}
OPTIONS = {
    "network": "small",
    "frame_stack": True,
    "noop_max": 30,
    "midgame_lanes": 2,
    "full_action_set": True,
    "reward_clip": 0,
    "rescale_values": True,
    "replay_cycles": 2,
    "dropout": 0.2,
    "l2": 1e-4,
    "adapt_learning_rate": True,
    "max_epochs": 3,
    "evaluation_episodes": 2,
    "episode_frames_limit": 240,
}

pytestmark = pytest.mark.usefixtures("home")


def trained(name: str, cycles: int, held: bool) -> tuple[StoredRun, str]:
    config = requested_config("fast", {**SMALL, **OPTIONS})
    run = create_run(config, action_names(config.game, config.full_action_set), name, {})
    for cycle in range(1, cycles + 1):
        for task in (collect_episodes, update_q_values, optimize):
            reference = task.fn(run.run_id, cycle)
            if not held:
                process_cache.release()
        publish_and_prune(run, reference)
    return run, reference.digest


def test_all_options_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dqn.envs.histories, "MIDGAME_CYCLES", 2)
    run, digest = trained("all-options", 3, held=True)
    assert digest == trained("all-options-torn", 3, held=False)[1]
    after = run.checkpoint(run.unit(CHECKPOINT, 2)).histories
    assert [math.isnan(history.score) for history in after] == [False, False, True, True]
    found = verify_run(run, replay=True)
    assert found.problems == [] and found.frames == 2 * 160, "the first checkpoint was pruned"
    process_cache.release()
    assert evaluate.fn(run.run_id, 3).figures["evaluation/steps"] > 0
    report = Path(inspect_run(run))
    assert report.is_file() and "all-options" in report.read_text()
