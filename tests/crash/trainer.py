"""What runs in a child: a training on real Breakout, without Prefect around its tasks.

Children are forked from a server in which everything is imported and compiled (`warmed.py`), so that
one costs a moment.
"""

from __future__ import annotations

import ctypes
import gc
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from prefect.logging import disable_run_logger

import dqn.envs.games
import storage.units.local_store
import tasks.optimize
from flows.train import publish_and_prune, requested_config
from storage.errors import StorageError
from storage.publication import publish_waiting, resume_run
from storage.run_catalog import list_runs
from storage.runs import create_run, open_run
from tasks import process_cache
from tasks.collect_episodes import collect_episodes
from tasks.evaluate import evaluate
from tasks.unit_reference import UnitReference
from tasks.update_q_values import update_q_values

CONFIG = {"network": "nips", "replay_states": 16, "batch_size": 8, "max_epochs": 1, "threads": 1, "keep_cycles": 1}
CONFIG |= {"lanes": 2, "evaluation_episodes": 1, "episode_frames_limit": 400}
STAGES = ("play", "sweep", "optimization")
FAILED = 3  # the exit status of a failure that was told in one line


@dataclass(frozen=True)
class Fault:
    """What happens at the operation number `at` (from 1) that changes files of the home."""

    at: int
    error: int = 0  # an errno; 0 means SIGKILL
    forever: bool = False  # every later operation fails too, as on a full disk
    keep: str = ""  # the directory to which goes what becomes durable


def create(home: str, changes: dict[str, int], say: Callable[[object], None]) -> None:
    """Create a run of the small configuration with some `changes` in `home`."""
    os.environ["DQN_HOME"] = home
    config = requested_config("fast", CONFIG | changes)
    say(create_run(config, dqn.envs.games.action_names(config.game), "crash", {}).run_id)


def statuses(home: str, say: Callable[[object], None]) -> None:
    """Tell the status of every run, as `dqn runs` does."""
    os.environ["DQN_HOME"] = home
    say([row["status"] for row in list_runs()])


def train(home: str, run_id: str, cycles: int, evaluates: bool, fault: Fault, say: Callable[[object], None]) -> None:
    """Train a run to its cycle number `cycles`, and perhaps evaluate it then; tells each phase as it begins."""
    os.environ["DQN_HOME"] = home
    _tell_phases(say)
    faults = ctypes.CDLL(None)
    faults.faults_arm(home.encode(), ctypes.c_long(fault.at), fault.error, fault.forever, fault.keep.encode())
    try:
        with disable_run_logger():
            _cycles(run_id, cycles, evaluates, say)
    except (OSError, StorageError) as error:
        say(str(error))
        sys.exit(FAILED)
    finally:
        say(int(faults.faults_seen()))


def _cycles(run_id: str, cycles: int, evaluates: bool, say: Callable[[object], None]) -> None:
    """The cycles as flows.train runs them."""
    run = open_run(run_id)
    with run.writing():
        run.tracking.set_status(run_id, "RUNNING")
        checkpoint = UnitReference.of(resume_run(run))
        while checkpoint.cycle < cycles:
            say("play")
            experience = _twice(collect_episodes, run_id, checkpoint)
            say("sweep")
            targets = _twice(update_q_values, run_id, experience)
            say("optimization")
            checkpoint = _twice(tasks.optimize.optimize, run_id, checkpoint, [experience], [targets])
            publish_and_prune(run, checkpoint)
        if evaluates:
            say("evaluation")
            publish_and_prune(run, _twice(evaluate, run_id, checkpoint))
        process_cache.clear()
        publish_waiting(run)
        run.tracking.set_status(run_id, "FINISHED")


def _twice(task: Any, *arguments: Any) -> UnitReference:
    """Run a task twice: the second run finds the committed unit and does nothing."""
    made: UnitReference = task.fn(*arguments)
    assert made == task.fn(*arguments)
    return made


def _tell_phases(say: Callable[[object], None]) -> None:
    """Let what belongs to no stage alone tell when it begins; a commit says of what."""
    write, sync = tasks.optimize.write_checkpoint, storage.units.local_store.sync_tree

    def write_checkpoint(*arguments: Any) -> None:
        say("checkpoint")
        write(*arguments)

    def sync_tree(stage: Path) -> None:
        say(f"commit {stage.name.rpartition('-')[0]}")
        sync(stage)

    tasks.optimize.write_checkpoint, storage.units.local_store.sync_tree = write_checkpoint, sync_tree


def warm() -> None:
    """Compile, load and open all that a training needs, and leave nothing of it behind."""
    dqn.envs.games.action_names = cache(dqn.envs.games.action_names)  # opens a game to ask it
    torch.set_num_threads(1)  # a fork loses the threads of a pool
    home = tempfile.mkdtemp()
    said: list[object] = []
    with disable_run_logger():
        create(home, {}, said.append)
        _cycles(str(said[0]), 2, True, said.append)
    shutil.rmtree(home)
    os.environ.pop("DQN_HOME")
    gc.collect()  # here, where the threads of the games still are
