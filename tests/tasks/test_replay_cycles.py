"""Training on several cycles: older ones are estimated again, all are swept as one, and each is named as an input."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from pipeline import play_and_sweep, run_cycles

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
from tasks.optimize import load_replay, older_cycles, optimize

SETTINGS = {"lanes": 4, "lane_groups": 1, "replay_states": 64, "batch_size": 16, "threads": 1, "network": "small"}

pytestmark = pytest.mark.usefixtures("home")


def created(name: str, **settings: Any) -> StoredRun:
    config = requested_config("fast", {**SETTINGS, **settings})
    return create_run(config, action_names(config.game), name, {})


def test_inputs_of_a_checkpoint_name_all_cycles() -> None:
    """They name the experience of every cycle in the replay memory; a run without the cache gives the same bytes."""
    run = created("three-cycles", replay_cycles=3, keep_cycles=1)
    before = run_cycles(run, 3)
    experience, targets = play_and_sweep(run, before)
    whole = optimize.fn(run.run_id, before, experience, targets)
    publish_and_prune(run, whole)
    inputs = run.unit(CHECKPOINT, 4).inputs
    assert set(inputs) == {"checkpoint", "experience", "targets", "experience-00002", "experience-00003"}
    assert inputs["experience-00003"] == run.unit(EXPERIENCE, 3).digest
    assert run.cycles(EXPERIENCE) == [4, 3, 2] and run.cycles(CHECKPOINT) == [4]
    uncached = created("uncached", replay_cycles=3, keep_cycles=1)
    assert whole.digest == run_cycles(uncached, 4, between=process_cache.clear).digest
    made = run.unit(CHECKPOINT, 4).made
    again = optimize.fn(run.run_id, before, experience, targets)
    assert again == whole and run.unit(CHECKPOINT, 4).made == made  # it is not made again
    assert verify_run(run).problems == []


def two_cycles(run: StoredRun) -> tuple[list[list[Unit]], Learner]:
    """The experience of cycles 1 and 2, the second one not optimized yet, and the learner that played it."""
    play_and_sweep(run, run_cycles(run, 1))
    checkpoint = run.checkpoint(run.unit(CHECKPOINT, 1))
    learner = restore_learner(checkpoint, prepare(checkpoint.config))
    return [*older_cycles(run, 2), [run.unit(EXPERIENCE, 2)]], learner


def loaded(run: StoredRun, units: list[list[Unit]], learner: Learner) -> tuple[Experience, ReplayMemory]:
    return load_replay(units[:-1], units[-1], [run.unit(TARGETS, 2)], learner)


def test_replay_memory_estimates_older_cycles_again() -> None:
    run = created("memory", replay_cycles=2, keep_cycles=3)
    units, learner = two_cycles(run)
    assert [unit.cycle for (unit,) in units] == [1, 2]
    played, memory = loaded(run, units, learner)
    first, second = (read_experience(unit.directory) for (unit,) in units)
    assert played.steps == 16 and len(memory) == 128
    assert np.array_equal(memory.states.numpy(), np.concatenate([first.states, second.states]).reshape(128, 105, 80, 2))

    swept = read_targets(run.unit(TARGETS, 2).directory)
    newest = ReplayMemory.of(second, swept)
    assert np.array_equal(memory.q_values[64:].numpy(), newest.q_values.numpy())  # the newest cycle is swept as before
    estimates = learner.estimate(first.states.reshape(64, 105, 80, 2)).reshape(first.q_values.shape)
    assert np.abs(estimates - first.q_values).max() > 1e-3  # it has learned since
    tables = {
        field.name: np.concatenate([getattr(each, field.name) for each in (first, second)]) for field in fields(first)
    }
    tables |= {
        "q_values": np.concatenate([estimates, second.q_values]),
        "bootstrap_q_values": second.bootstrap_q_values,
    }
    one = backward_sweep(Experience(**tables), SweepRule.of(learner.config))
    np.testing.assert_allclose(memory.q_values.numpy(), one.q_values.reshape(128, -1), rtol=1e-5, atol=1e-5)


def test_returns_do_not_cross_a_start_in_midgame(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dqn.envs.histories, "MIDGAME_CYCLES", 1)
    run = created("midgame", replay_cycles=2, midgame_lanes=2)
    _, memory = loaded(run, *two_cycles(run))
    errors = memory.estimation_errors.reshape(32, 4)
    assert (errors[15, 2:] == 0).all()  # the estimates stay, as at a time limit
    assert (errors[15, :2] > 0).all() and (errors[[14, 16], 2:] > 0).all()


def test_missing_cycle_is_an_error_of_one_line() -> None:
    run = created("missing", replay_cycles=3)
    run_cycles(run, 2)
    run.store(EXPERIENCE).discard(1)
    with pytest.raises(
        StorageError, match=r"has no experience of cycle 1.*replay_cycles=3 cycle 3 cannot.*new run"
    ) as told:
        run_cycles(run, 1)
    assert "\n" not in str(told.value)
