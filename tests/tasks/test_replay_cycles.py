"""Training from the last cycles: their estimates made anew, all swept as one, and every one named as an input."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest

import dqn.envs.histories
from dqn.checkpoint import restore_learner
from dqn.envs.experience import Experience
from dqn.envs.games import action_names
from dqn.hardware import prepare
from dqn.learning.learner import Learner
from dqn.learning.replay import ReplayMemory
from dqn.learning.sweep import SweepRule, backward_sweep
from flows.commands.verify import verify_run
from flows.parameters import requested_config
from flows.train import publish_and_prune
from storage.errors import StorageError
from storage.formats.experience import read_experience, read_targets
from storage.runs import StoredRun, create_run
from storage.units.unit import CHECKPOINT, EXPERIENCE, TARGETS, Unit
from tasks import process_cache
from tasks.collect_episodes import collect_episodes
from tasks.optimize import older_cycles, optimize, replay_of
from tasks.update_q_values import update_q_values

SETTINGS = {"lanes": 4, "lane_groups": 1, "replay_states": 64, "batch_size": 16, "threads": 1, "network": "small"}

pytestmark = pytest.mark.usefixtures("home")


def started(name: str, **settings: Any) -> StoredRun:
    config = requested_config("fast", {**SETTINGS, **settings})
    return create_run(config, action_names(config.game), name, {})


def go_on(run: StoredRun, *cycles: int, held: bool = True) -> str:
    for cycle in cycles:
        for task in (collect_episodes, update_q_values, optimize):
            reference = task.fn(run.run_id, cycle)
            if not held:
                process_cache.release()
        publish_and_prune(run, reference)
    return reference.digest


def test_the_checkpoint_names_every_cycle_it_was_trained_from_and_goes_on_bit_for_bit() -> None:
    run = started("three-cycles", replay_cycles=3, keep_cycles=1)
    whole = go_on(run, 1, 2, 3, 4)
    inputs = run.unit(CHECKPOINT, 4).inputs
    assert set(inputs) == {"checkpoint", "experience", "targets", "experience-00002", "experience-00003"}
    assert inputs["experience-00003"] == run.unit(EXPERIENCE, 3).digest
    assert run.cycles(EXPERIENCE) == [4, 3, 2] and run.cycles(CHECKPOINT) == [4]
    assert whole == go_on(started("torn", replay_cycles=3, keep_cycles=1), 1, 2, 3, 4, held=False)
    made = run.unit(CHECKPOINT, 4).made
    assert optimize.fn(run.run_id, 4).digest == whole and run.unit(CHECKPOINT, 4).made == made, "it is not made again"
    assert verify_run(run).problems == []


def two_cycles(run: StoredRun) -> tuple[list[list[Unit]], Learner]:
    """The experience of cycles 1 and 2, the second not optimized yet, and the learner that played it."""
    go_on(run, 1)
    collect_episodes.fn(run.run_id, 2)
    update_q_values.fn(run.run_id, 2)
    checkpoint = run.checkpoint(run.unit(CHECKPOINT, 1))
    learner = restore_learner(checkpoint, prepare(checkpoint.config))
    return [*older_cycles(run, 2), [run.unit(EXPERIENCE, 2)]], learner


def test_the_memory_is_the_last_cycles_estimated_anew_and_swept_as_one() -> None:
    run = started("memory", replay_cycles=2, keep_cycles=3)
    units, learner = two_cycles(run)
    assert [unit.cycle for (unit,) in units] == [1, 2]
    played, memory = replay_of(units, learner)
    first, second = (read_experience(unit.directory) for (unit,) in units)
    assert played.steps == 16 and len(memory) == 128
    assert np.array_equal(memory.states.numpy(), np.concatenate([first.states, second.states]).reshape(128, 105, 80, 2))

    swept = read_targets(run.unit(TARGETS, 2).directory)
    newest = ReplayMemory.of(second, swept)
    assert np.array_equal(memory.q_values[64:].numpy(), newest.q_values.numpy()), "the newest are swept as they were"
    estimates = learner.estimate(first.states.reshape(64, 105, 80, 2)).reshape(first.q_values.shape)
    assert np.abs(estimates - first.q_values).max() > 1e-3, "it has learnt since"
    tables = {
        field.name: np.concatenate([getattr(each, field.name) for each in (first, second)]) for field in fields(first)
    }
    tables |= {
        "q_values": np.concatenate([estimates, second.q_values]),
        "bootstrap_q_values": second.bootstrap_q_values,
    }
    one = backward_sweep(Experience(**tables), SweepRule.of(learner.config))
    np.testing.assert_allclose(memory.q_values.numpy(), one.q_values.reshape(128, -1), rtol=1e-5, atol=1e-5)


def test_nothing_is_carried_from_where_a_lane_went_on_in_midgame(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dqn.envs.histories, "MIDGAME_CYCLES", 1)
    run = started("elsewhere", replay_cycles=2, midgame_lanes=2)
    _, memory = replay_of(*two_cycles(run))
    errors = memory.estimation_errors.reshape(32, 4)
    assert (errors[15, 2:] == 0).all(), "the estimates stay, as at a time limit"
    assert (errors[15, :2] > 0).all() and (errors[[14, 16], 2:] > 0).all()


def test_a_cycle_that_is_gone_is_told_in_one_line() -> None:
    run = started("gone", replay_cycles=3)
    go_on(run, 1, 2)
    run.store(EXPERIENCE).discard(1)
    with pytest.raises(
        StorageError, match=r"has no experience of cycle 1.*replay_cycles=3 cycle 3 cannot.*new run"
    ) as told:
        go_on(run, 3)
    assert "\n" not in str(told.value)
