"""What is read from files, variables and tags that a stranger may have changed, and how an input of each is made."""

from __future__ import annotations

import hashlib
import json
import os
import random
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mutations import ODD_VALUES, change

from dqn.checkpoint import first_checkpoint, restore_learner
from dqn.config import TrainConfig, make_config
from dqn.envs.experience import Experience, Targets
from dqn.envs.histories import LaneHistory
from dqn.evaluation.evaluation import Evaluation, Protocol
from dqn.export.inference_spec import ExportedAgent
from dqn.hardware import resolve
from dqn.learning.sweep import SweepRule, backward_sweep
from dqn.metrics import Curve, Metric
from flows.commands.agents import Agent
from flows.parameters import Target, config_from_file
from flows.sweeps.definition import read_sweep
from storage import runs
from storage.formats.agent_export import read_export, write_export
from storage.formats.checkpoint import read_checkpoint, write_checkpoint
from storage.formats.evaluation import read_evaluation, write_evaluation
from storage.formats.experience import read_experience, read_targets, write_experience, write_targets
from storage.run_list import list_runs
from storage.runs import create_run, open_run, open_tracking
from storage.settings import Settings
from storage.units.local_store import LocalUnitStore
from storage.units.store import committing
from storage.units.unit import MANIFEST, TARGETS, Unit, UnitKind, cycle_name, open_unit

ACTIONS = ["NOOP", "FIRE", "RIGHT", "LEFT"]


def small_config() -> TrainConfig:
    return resolve(make_config("fast", {"network": "small", "lanes": 2, "replay_states": 8, "threads": 1}))


@dataclass
class Reader:
    """Reads what a stranger may have written: `read` reads the files of `directory` and uses what it gets."""

    write: Callable[[Path], object]
    read: Callable[[Path], object]
    alter: Callable[[Path, random.Random], object] | None = None  # by default one of the files is changed
    is_slow: bool = False


def write_a_unit(directory: Path) -> None:
    store = LocalUnitStore(directory / "replay", directory / "staging")
    with committing(store, kind=TARGETS, cycle=4, inputs={"experience": "ab" * 32}, made_by={"run": "r"}) as draft:
        (draft.directory / "table").write_bytes(b"\x00\x01" * 50)
        draft.metrics += [Metric("loss/mean", 3, 0.25), Metric("score", 2**40, 1e-300)]
        draft.speed["optimize"] = 1_000.0


def alter_manifest(directory: Path, draws: random.Random) -> None:
    """Change a manifest; in half of the inputs its digest is computed anew, as far as there is one."""
    path = directory / "replay" / cycle_name(4) / MANIFEST
    path.write_bytes(change(path.name, path.read_bytes(), draws))
    if draws.random() < 0.5:
        return
    try:
        found = json.loads(path.read_bytes())
        parts = (found[name] for name in ("cycle", "inputs", "files", "metrics", "made"))
        unit = Unit(path.parent, UnitKind.parse(found["kind"]), *parts)
        path.write_text(json.dumps(found | {"digest": unit.digest}))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass


def read_a_unit(directory: Path) -> None:
    unit = open_unit(directory / "replay" / cycle_name(4))
    if unit is not None:
        _ = unit.metrics, unit.speed, unit.created_ms, unit.bytes, unit.digest, str(unit.kind)


def write_a_checkpoint(directory: Path) -> None:
    checkpoint = first_checkpoint(small_config(), ACTIONS)
    played = np.arange(3, dtype=np.uint8)
    checkpoint.histories[:] = [LaneHistory(lane, lane, played, 2.0, 3) for lane in range(2)]
    write_checkpoint(directory, checkpoint)


def read_a_checkpoint(directory: Path) -> None:
    restore_learner(read_checkpoint(directory), torch.device("cpu"))


def an_experience() -> Experience:
    experience = Experience.empty(3, 2, 4, channels=2)
    draws = np.random.default_rng(0)
    experience.states[:] = draws.integers(0, 2, experience.states.shape)
    experience.q_values[:] = draws.normal(size=experience.q_values.shape)
    return experience


def read_an_experience(directory: Path) -> None:
    backward_sweep(read_experience(directory), SweepRule.of(small_config()))


def an_evaluation() -> Evaluation:
    return Evaluation(Protocol("ALE/Breakout-v5", 3, 0.01), [1.0, 2.0, 4.0], [100, 200, 300], 0)


def read_an_evaluation(directory: Path) -> None:
    read_evaluation(directory).metrics("evaluation", 100)


def write_an_agent(directory: Path) -> None:
    checkpoint = first_checkpoint(small_config(), ACTIONS)
    curves = {"score/mean_100": Curve(np.arange(3.0), np.arange(3.0))}
    exported = ExportedAgent("id", "name", "ab" * 32, checkpoint.metadata, checkpoint.weights, an_evaluation(), curves)
    write_export(directory, exported, "# Card\n")


def alter_agent(directory: Path, draws: random.Random) -> None:
    """Change one of the files; in half of the inputs the digest of the weights is that of the changed weights."""
    alter_one_file(directory, draws)
    weights, config = directory / "weights.safetensors", directory / "config.json"
    if draws.random() < 0.5:
        return
    try:
        found = json.loads(config.read_bytes())
        found["weights_sha256"] = hashlib.sha256(weights.read_bytes()).hexdigest()
        config.write_text(json.dumps(found))
    except (ValueError, TypeError, RecursionError):
        pass


def read_an_agent(directory: Path) -> None:
    read_export(directory)
    agent = Agent.load(directory)
    if agent.exported is not None and agent.exported.evaluation is not None:
        agent.exported.evaluation.summary()


def write_a_config(directory: Path) -> None:
    (directory / "run.yaml").write_text(
        "format: 1\ngame: ALE/Pong-v5\nseed: 3\nlanes: 64\nreplay_fraction: '1'\nlearning_rate: '5e-4:1e-5:100'\n"
        "epsilon: 1:0.1:100\nnetwork: residual\ncompiled: 'no'\noverlap: auto\nnormalize: true\ndropout: 0.1\n"
    )


def write_a_sweep(directory: Path) -> None:
    (directory / "sweep.yaml").write_text(
        "format: 1\nname: traces\nbase: {game: ALE/Pong-v5, states: 1200000, preset: fast}\nsearch:\n"
        "  td_lambda: {choices: [0.65, 0.8, 0.9]}\n  learning_rate.start: {low: 1e-4, high: 1e-3, log: true}\n"
        "trials: 12\nseeds: [0, 1]\nobjective: score/mean_100\nprune: {after_states: 400000, keep: 0.5}\n"
        "parallel: 2\nthreads: 1\nsampler: tpe\nsampler_seed: 0\n"
    )


VARIABLES = [
    "MLFLOW_TRACKING_URI",
    "DQN_REPLAY",
    "DQN_HOST",
    "DQN_PREFECT_PORT",
    "DQN_MLFLOW_PORT",
    "DQN_TRAININGS",
    "DQN_FLOW_RUN_CYCLES",
    "DQN_CLUSTER",
]
VALUES = ["tcp://host:8786", "s3://bucket/replay", "127.0.0.1", "4200", "sqlite:////tmp/a.db", "http://user:x@host:1/"]


def alter_environment(directory: Path, draws: random.Random) -> None:
    """One to three variables with odd values. No local path is among them, because it would be created."""
    for name in draws.sample(VARIABLES, draws.randint(1, 3)):
        value = draws.choice([str(draws.choice(ODD_VALUES)), *VALUES])
        if draws.random() < 0.5:
            value = change("value.txt", value.encode(errors="replace"), draws).decode(errors="replace")
        if name == "DQN_REPLAY" and not value.startswith("s3://"):
            value = "s3://" + value
        os.environ[name] = value.replace("\0", "").encode(errors="replace").decode()


def read_environment(directory: Path) -> None:
    try:
        found = Settings.from_environment()
        _ = found.mlflow_address, found.prefect_address, found.is_loopback
    finally:
        for name in VARIABLES:
            os.environ.pop(name, None)


def write_a_store(directory: Path) -> None:
    """An MLflow store with a run that is running and one that has finished."""
    tracking = open_tracking()
    for name in ("first", "second"):
        run = create_run(small_config(), ACTIONS, name, {"dqn.target": "states=1000", "dqn.preset": "fast"})
        tracking.log_metric(run.run_id, "score/mean_100", 1.5)
    tracking.set_status(run.run_id, "FINISHED")


def alter_store(directory: Path, draws: random.Random) -> None:
    """Change one to three tags, params, metrics or names in the database of the store."""
    with sqlite3.connect(directory / "mlflow.db") as database:
        for _ in range(draws.randint(1, 3)):
            table, column = draws.choice(
                [("tags", "value"), ("params", "value"), ("latest_metrics", "value"), ("runs", "name")]
            )
            rows = database.execute(f"SELECT rowid FROM {table}").fetchall()
            value: Any = draws.choice(ODD_VALUES)
            if column == "value" and table == "latest_metrics":
                value = draws.choice([0, -1, 1e308, float("inf"), -1e308, 2**53])
            elif draws.random() < 0.3:
                value = draws.choice(
                    ["states=0", "cycles=0", "states=7", "states=", "other=5", "states=-1", "states=" + "9" * 400]
                )
            text = (
                value
                if isinstance(value, float | int) and abs(value) < 2**63
                else str(value).encode(errors="replace").decode()
            )
            database.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (text, draws.choice(rows)[0]))


def read_store(directory: Path) -> None:
    runs._stored_run.cache_clear()
    for row in list_runs():
        run = open_run(row.id)
        found = run.tracking.get_run(run.run_id)
        Target.parse(found.data.tags.get("dqn.target", "")).fraction(10, 1)
        open_tracking().find_run(row.name)
        read_checkpoint(run.newest_checkpoint().directory)


def alter_one_file(directory: Path, draws: random.Random) -> None:
    path = draws.choice(sorted(path for path in directory.rglob("*") if path.is_file()))
    path.write_bytes(change(path.name, path.read_bytes(), draws))


READERS = {
    "manifest": Reader(write_a_unit, read_a_unit, alter_manifest),
    "checkpoint": Reader(write_a_checkpoint, read_a_checkpoint),
    "experience": Reader(lambda directory: write_experience(directory, an_experience()), read_an_experience),
    "targets": Reader(
        lambda directory: write_targets(
            directory, Targets(*(np.ones(shape, np.float32) for shape in ((3, 2, 4), (3, 2))))
        ),
        read_targets,
    ),
    "evaluation": Reader(lambda directory: write_evaluation(directory, an_evaluation()), read_an_evaluation),
    "agent": Reader(write_an_agent, read_an_agent, alter_agent),
    "configuration": Reader(write_a_config, lambda directory: config_from_file(directory / "run.yaml")),
    "sweep": Reader(write_a_sweep, lambda directory: read_sweep(directory / "sweep.yaml")),
    "environment": Reader(lambda directory: None, read_environment, alter_environment),
    "store": Reader(write_a_store, read_store, alter_store, is_slow=True),
}
