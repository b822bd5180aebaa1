from __future__ import annotations

import os
import shutil
import sqlite3
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy
import torch
from s3_server import BUCKET, PASS, S3Server
from small_run import NoTracking
from watched_disk import Scene

import storage.runs
from dqn.checkpoint import Checkpoint, CheckpointMetadata, Counters
from dqn.config import TrainConfig, make_config
from dqn.envs.experience import Experience, Targets
from dqn.envs.histories import LaneHistory
from dqn.envs.observations import STATE_HEIGHT, STATE_WIDTH
from storage.runs import StoredRun
from storage.settings import Settings
from storage.units.local_store import LocalUnitStore
from storage.units.s3_store import S3UnitStore


@pytest.fixture(scope="module", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """Turn fsync off, which is slow; test_power_loss.py tests it with a model of a disk."""

    def relax(connection: sqlite3.Connection, _: object) -> None:
        with suppress(sqlite3.DatabaseError):  # it may not be a database, which other code reports
            connection.execute("PRAGMA synchronous = OFF")

    sqlalchemy.event.listen(sqlalchemy.engine.Engine, "connect", relax)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fstat)
        yield
    sqlalchemy.event.remove(sqlalchemy.engine.Engine, "connect", relax)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    server = S3Server(tmp_path_factory.mktemp("s3"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """A real S3 server, with the environment for its clients."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    yield s3_server
    s3_server.judge = lambda method, path: PASS


@pytest.fixture
def make_store(s3: S3Server, tmp_path: Path) -> Callable[..., S3UnitStore]:
    def make(retry_seconds: float = 5.0) -> S3UnitStore:
        root = tmp_path / uuid.uuid4().hex
        url = f"s3://{BUCKET}/{root.name}/experience"
        return S3UnitStore(url, root / "staging", root / "cache" / "experience", retry_seconds)

    return make


@pytest.fixture(scope="session")
def make_experience() -> Callable[..., Experience]:
    """Experience of any size with distinct arrays. Most pixels are zero, so that files are small."""

    def make(steps: int = 5, lanes: int = 2, actions: int = 4, seed: int = 0, with_states: bool = True) -> Experience:
        draws = np.random.default_rng([seed, steps, lanes, actions])
        table, pixels = (steps, lanes), (steps if with_states else 0, lanes, STATE_HEIGHT, STATE_WIDTH, 2)
        return Experience(
            states=(draws.integers(1, 256, pixels) * (draws.random(pixels) < 0.01)).astype(np.uint8),
            q_values=draws.normal(size=(*table, actions)).astype(np.float32),
            bootstrap_q_values=draws.normal(size=(lanes, actions)).astype(np.float32),
            actions=draws.integers(actions, size=table).astype(np.uint8),
            rewards=draws.normal(size=table).astype(np.float32),
            life_lost=draws.random(table) < 0.5,
            terminated=draws.random(table) < 0.5,
            truncated=draws.random(table) < 0.5,
            episode=draws.integers(2**62, size=table),
        )

    return make


@pytest.fixture(scope="session")
def make_targets() -> Callable[..., Targets]:
    """Targets of any size."""

    def make(steps: int = 5, lanes: int = 2, actions: int = 4, seed: int = 0) -> Targets:
        draws = np.random.default_rng([seed, steps, lanes, actions])
        return Targets(
            q_values=draws.normal(size=(steps, lanes, actions)).astype(np.float32),
            estimation_errors=draws.random((steps, lanes)).astype(np.float32),
        )

    return make


@pytest.fixture(scope="session")
def small_config() -> TrainConfig:
    """A configuration in which most fields differ from the defaults."""
    return make_config("tutorial", {"lanes": 3, "seed": 7, "replay_states": 60, "keep_cycles": 3})


@pytest.fixture(scope="session")
def make_checkpoint(small_config: TrainConfig) -> Callable[..., Checkpoint]:
    """A small checkpoint of three lanes. Its tensors belong to no network."""

    def make(seed: int = 0) -> Checkpoint:
        draws = np.random.default_rng(seed)
        played = [np.zeros(0, np.uint8), *(draws.integers(4, size=size).astype(np.uint8) for size in (40, 7))]
        return Checkpoint(
            metadata=CheckpointMetadata(
                config=small_config,
                action_names=("NOOP", "FIRE", "RIGHT", "LEFT"),
                counters=Counters(cycle=3, states=180 + seed, episodes=5, updates=21),
                recent_scores=(0.1, 2.0, 1 / 3),
            ),
            histories=[
                LaneHistory(lane, lane % 2, actions, score=lane + 0.1, steps=2 * lane)
                for lane, actions in enumerate(played)
            ],
            weights={
                "dense.weight": torch.from_numpy(draws.normal(size=(16, 8)).astype(np.float32)),
                "dense.bias": torch.from_numpy(draws.normal(size=8).astype(np.float32)).to(torch.bfloat16),
            },
            optimizer={
                "0.step": torch.tensor(21.0),
                "0.exp_avg": torch.from_numpy(draws.normal(size=(16, 8))),
                "1.seen": torch.tensor([3, 2**40]),
            },
        )

    return make


@pytest.fixture(scope="session")
def same() -> Callable[[object, object], bool]:
    """Whether two arrays, tensors, or dataclasses or collections of them are equal in type, shape and every bit."""

    def same_values(one: object, other: object) -> bool:
        if type(one) is not type(other):
            return False
        if isinstance(one, np.ndarray):
            return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
        if isinstance(one, torch.Tensor):
            return one.dtype == other.dtype and torch.equal(one, other)
        if isinstance(one, dict):
            return one.keys() == other.keys() and all(same_values(one[key], other[key]) for key in one)
        if isinstance(one, list):
            return len(one) == len(other) and all(map(same_values, one, other))
        if isinstance(one, Experience | Targets | Checkpoint | LaneHistory):
            return all(same_values(getattr(one, field.name), getattr(other, field.name)) for field in fields(one))
        return one == other

    return same_values


@pytest.fixture
def home(mlflow_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home for one test, whose path needs escapes in a URL."""
    home = tmp_path / "my höme 100%"
    home.mkdir()
    shutil.copy(mlflow_database, home / "mlflow.db")
    monkeypatch.setenv("DQN_HOME", str(home))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    yield home
    storage.runs._tracking.cache_clear()
    storage.runs._stored_run.cache_clear()


@pytest.fixture(params=["first", "next", "replaced"])
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Scene:
    return Scene(request.param, tmp_path)


@pytest.fixture
def run(tmp_path: Path) -> StoredRun:
    """A run without MLflow, which units and locks do not use."""
    settings = Settings(home=tmp_path, tracking_uri="sqlite://")
    tracking: Any = NoTracking()
    run_id = "0123456789abcdef"
    staging = settings.staging(run_id)
    artifacts, replay = tmp_path / "artifacts" / "0123", tmp_path / "replay" / run_id
    return StoredRun(
        run_id, "my-run", settings, tracking, LocalUnitStore(artifacts, staging), LocalUnitStore(replay, staging)
    )


@pytest.fixture
def tiny(small_config: TrainConfig) -> TrainConfig:
    return small_config.model_copy(update={"network": "nature"})
