"""Runs whose next cycle is played before the network is trained; see also tests/tasks/test_tasks_and_cycle.py."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from pipeline import play_and_sweep, run_cycles

from dqn.envs.games import action_names
from flows.parameters import requested_config
from storage.errors import StorageError
from storage.publication import resume_run
from storage.runs import StoredRun, create_run
from storage.units.unit import CHECKPOINT, EXPERIENCE
from tasks import process_cache
from tasks.collect_episodes import next_play, state_after
from tasks.optimize import optimize
from tasks.unit_reference import UnitReference

SETTINGS = {"lanes": 2, "replay_states": 64, "batch_size": 16, "threads": 1, "network": "small", "overlap": "yes"}

pytestmark = pytest.mark.usefixtures("home")


def created(name: str, **fields: object) -> StoredRun:
    config = requested_config("fast", {**SETTINGS, **fields})
    return create_run(config, action_names(config.game), name, {})


def test_next_cycle_is_played_by_the_checkpoint_before_the_last() -> None:
    run = created("inputs")
    run_cycles(run, 3)
    inputs = {cycle: run.unit(EXPERIENCE, cycle).inputs for cycle in run.cycles(EXPERIENCE)}
    digests = {cycle: run.unit(CHECKPOINT, cycle).digest for cycle in run.cycles(CHECKPOINT)}
    assert inputs[3] == {"checkpoint": digests[1], "experience": run.unit(EXPERIENCE, 2).digest}
    assert sorted(digests) == [1, 2, 3], "keep_cycles is 2"


def test_run_continues_without_experience() -> None:
    """The histories of the newest checkpoint say where the games go on."""
    whole, run = created("whole"), created("without-experience")
    digest = run_cycles(whole, 3).digest
    run_cycles(run, 2)
    process_cache.clear()
    shutil.rmtree(run.replay.directory)
    assert resume_run(run).cycle == 2
    assert run_cycles(run, 1).digest == digest


def test_checkpoint_has_the_state_that_follows_from_experience() -> None:
    run = created("states")
    run_cycles(run, 2)
    checkpoint, (player, since) = run.unit(CHECKPOINT, 2), next_play(run, run.unit(CHECKPOINT, 2))
    before = run.checkpoint(player.open(run))
    inputs = {name: checkpoint.inputs[name] for name in ("checkpoint", "experience")}
    stored = state_after(run, before, inputs, since)
    run.store(CHECKPOINT).discard(2)
    computed = state_after(run, before, inputs, since)
    assert stored.metadata.counters.states == computed.metadata.counters.states == 128
    assert stored.metadata.recent_scores == computed.metadata.recent_scores
    for one, other in zip(stored.histories, computed.histories, strict=True):
        np.testing.assert_equal(vars(one), vars(other))


def test_damaged_checkpoint_that_plays_is_made_again() -> None:
    """The next cycle lacks the network that plays it, so the run continues from the checkpoint before."""
    whole, run = created("undamaged"), created("damaged")
    digest = run_cycles(whole, 3).digest
    run_cycles(run, 2)
    process_cache.clear()
    (run.unit(CHECKPOINT, 1).directory / "weights.safetensors").write_bytes(b"damaged")
    assert resume_run(run).cycle == 0
    checkpoint = UnitReference.of(run.unit(CHECKPOINT, 0))
    for left in (2, 1, 0):
        experience, targets = play_and_sweep(run, checkpoint, is_last=left == 0)
        checkpoint = optimize.fn(run.run_id, checkpoint, experience, targets)
    assert checkpoint.digest == digest


def test_damaged_checkpoint_is_not_needed_if_the_next_cycle_was_played() -> None:
    run = created("played")
    run_cycles(run, 2)
    play_and_sweep(run, UnitReference.of(run.unit(CHECKPOINT, 2)), is_last=True)
    (run.unit(CHECKPOINT, 1).directory / "weights.safetensors").write_bytes(b"damaged")
    assert resume_run(run).cycle == 2


def test_run_without_a_checkpoint_that_continues_is_refused() -> None:
    run = created("refused", keep_cycles=1)
    run_cycles(run, 3)
    process_cache.clear()
    (run.unit(CHECKPOINT, 2).directory / "weights.safetensors").write_bytes(b"damaged")
    with pytest.raises(StorageError, match=r"checkpoints/00002"):
        resume_run(run)
