"""The functions that children execute: a training on real Breakout whose tasks run without a Prefect flow.

A child is forked from a server in which everything is imported and compiled (`preload.py`), so that it
starts in milliseconds.
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

import mlflow.store.db.utils
import torch
from prefect.logging import disable_run_logger

import dqn.envs.games
import storage.units.local_store
import tasks.optimize
from flows.train import publish_and_prune, requested_config
from storage.errors import StorageError
from storage.publication import publish_waiting, resume_run
from storage.run_list import list_runs
from storage.runs import create_run, open_run, open_tracking
from tasks import process_cache
from tasks.collect_episodes import collect_episodes, next_play
from tasks.evaluate import evaluate
from tasks.unit_reference import UnitReference
from tasks.update_q_values import update_q_values

CONFIG: dict[str, Any] = {
    "network": "nips",
    "replay_states": 16,
    "batch_size": 8,
    "max_epochs": 1,
    "threads": 1,
    "keep_cycles": 1,
}
CONFIG |= {"lanes": 2, "evaluation_episodes": 1, "episode_frames_limit": 400}
CONFIG |= {"overlap": os.environ.get("CRASH_OVERLAP", "no")}
STAGES = ("play", "sweep", "optimization")
FAILED = 3  # exit status of a training which reported a one-line error

Send = Callable[[object], None]  # sends a message to the test


@dataclass(frozen=True)
class Fault:
    """The fault at operation number `at` (from 1; 0 is none) of those that change files of the home."""

    at: int
    error: int = 0  # an errno; 0 means SIGKILL
    permanent: bool = False  # every later operation fails too, as on a full disk
    copies: str = ""  # the directory for copies of everything that becomes durable


def create(home: str, changes: dict[str, int], send: Send) -> None:
    """Create a run of the small configuration with `changes` in `home`, and send its id."""
    os.environ["DQN_HOME"] = home
    config = requested_config("fast", CONFIG | changes)
    send(create_run(config, dqn.envs.games.action_names(config.game), "crash", {}).run_id)


def create_store(home: str, send: Send) -> None:
    """Create the tables of MLflow in `home`."""
    os.environ["DQN_HOME"] = home
    open_tracking()


def statuses(home: str, send: Send) -> None:
    """Send the status of every run, as `dqn runs` shows it."""
    os.environ["DQN_HOME"] = home
    send([row.status for row in list_runs()])


def train(home: str, run_id: str, cycles: int, evaluates: bool, fault: Fault, send: Send) -> None:
    """Train a run to cycle `cycles`, and evaluate it then if `evaluates`.

    Sends the name of each phase when it starts, the error message if the training fails, and at last the
    number of operations on files.
    """
    os.environ["DQN_HOME"] = home
    _send_inner_phases(send)
    faults = ctypes.CDLL(None)
    faults.faults_arm(home.encode(), ctypes.c_long(fault.at), fault.error, fault.permanent, fault.copies.encode())
    try:
        with disable_run_logger():
            _train(run_id, cycles, evaluates, send)
    except (OSError, StorageError) as error:
        send(str(error))
        sys.exit(FAILED)
    finally:
        send(int(faults.faults_seen()))


def _train(run_id: str, cycles: int, evaluates: bool, send: Send) -> None:
    """The same cycles as in flows.train, but one task after the other."""
    run = open_run(run_id)
    with run.writing():
        run.tracking.set_status(run_id, "RUNNING")
        newest = resume_run(run)
        checkpoint, (player, since) = UnitReference.of(newest), next_play(run, newest)
        while checkpoint.cycle < cycles:
            send("play")
            experience = _run_twice(collect_episodes, run_id, player, 0, since)
            player, since = checkpoint, (experience,)
            if run.config.overlap == "yes" and checkpoint.cycle + 1 < cycles:
                send("play ahead")
                _run_twice(collect_episodes, run_id, player, 0, since)
            send("sweep")
            targets = _run_twice(update_q_values, run_id, experience)
            send("optimization")
            checkpoint = _run_twice(tasks.optimize.optimize, run_id, checkpoint, [experience], [targets])
            if run.config.overlap == "no":
                player, since = checkpoint, ()
            publish_and_prune(run, checkpoint)
        if evaluates:
            send("evaluation")
            publish_and_prune(run, _run_twice(evaluate, run_id, checkpoint))
        process_cache.clear()
        publish_waiting(run)
        run.tracking.set_status(run_id, "FINISHED")


def _run_twice(task: Any, *arguments: Any) -> UnitReference:
    """Run a task twice: the second time it finds the committed unit and does nothing."""
    made: UnitReference = task.fn(*arguments)
    assert made == task.fn(*arguments)
    return made


def _send_inner_phases(send: Send) -> None:
    """Also send the phases within a stage: writing a checkpoint, and each commit with the name of its unit."""
    write, sync = tasks.optimize.write_checkpoint, storage.units.local_store.sync_tree

    def write_checkpoint(*arguments: Any) -> None:
        send("checkpoint")
        write(*arguments)

    def sync_tree(stage: Path) -> None:
        send(f"commit {stage.name.rpartition('-')[0]}")
        sync(stage)

    tasks.optimize.write_checkpoint, storage.units.local_store.sync_tree = write_checkpoint, sync_tree


def preload() -> None:
    """Import, compile and load everything that a training needs, and remove what that leaves."""
    # MLflow compares the schema of each store that it opens with the newest of its 68 revisions, and reads them all.
    mlflow.store.db.utils._get_latest_schema_revision = cache(mlflow.store.db.utils._get_latest_schema_revision)
    torch.set_num_threads(1)  # a forked process lacks the threads of its parent's pool
    home = tempfile.mkdtemp()
    messages: list[object] = []
    with disable_run_logger():
        create(home, {}, messages.append)
        _train(str(messages[0]), 2, True, messages.append)
    shutil.rmtree(home)
    os.environ.pop("DQN_HOME")
    gc.collect()  # before the fork, because only this process has the threads of the games
