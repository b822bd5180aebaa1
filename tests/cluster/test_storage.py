"""`dqn train` with everything that it commits on S3 and in PostgreSQL, on machines that share nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from s3_server import CUT, PASS, SECRET
from servers import Servers

pytestmark = pytest.mark.cluster

CONFIG = {"network": "nips", "replay_states": 16, "batch_size": 8, "max_epochs": 1, "threads": 1, "keep_cycles": 2}
CONFIG |= {"lanes": 2, "evaluation_states": 32, "evaluation_episodes": 1, "episode_frames_limit": 400}
SETTINGS = [part for name, value in CONFIG.items() for part in ("--set", f"{name}={value}")]
CYCLES = 3
COMMAND_SECONDS = 600
AWAY_SECONDS = 10

Tell = Callable[[int, str, str], None]


@dataclass
class Machine:
    """A home of its own, and what it shares with others by its environment."""

    home: Path
    shared: dict[str, str]

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        environment = {**os.environ, **self.shared, "DQN_HOME": str(self.home)}
        return subprocess.Popen(
            [sys.executable, "-m", "flows.cli", *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def dqn(self, *arguments: str, status: int = 0) -> str:
        """Run a command to its end: what it printed, or told as its error."""
        out, error = (process := self.start(*arguments)).communicate(timeout=COMMAND_SECONDS)
        assert process.returncode == status, (arguments, out, error)
        return error if status else out

    def verify(self, run: str) -> dict[str, Any]:
        return json.loads(self.dqn("verify", run, "--json"))

    def text(self) -> bytes:
        """All that its files say."""
        return b"".join(path.read_bytes() for path in self.home.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What comes of the run on one machine with nothing but its home."""
    machine = Machine(tmp_path_factory.mktemp("alone") / "home", {})
    machine.dqn("train", "--cycles", str(CYCLES), "--name", "alone", *SETTINGS)
    return machine.verify("alone")


@pytest.fixture
def machine(servers: Servers, tmp_path: Path) -> Callable[[str], Machine]:
    return lambda name: Machine(tmp_path / name, servers.environment)


@pytest.fixture
def at_request(servers: Servers) -> Callable[[str, Callable[[], None]], None]:
    """Do something at the first request on S3 that writes a file whose key has a part; the request is cut off."""

    def arrange(part: str, act: Callable[[], None]) -> None:
        waiting = [act]

        def judge(method: str, path: str) -> str:
            if method == "PUT" and part in path and waiting:
                threading.Thread(target=waiting.pop()).start()
                return CUT
            return PASS

        servers.s3.judge = judge

    yield arrange
    servers.s3.judge = lambda method, path: PASS


def test_killed_in_mid_write_and_resumed_elsewhere_with_the_store_away_it_is_the_run_of_one_machine(
    undisturbed: dict[str, Any], servers: Servers, machine: Any, at_request: Any, figure: Tell
) -> None:
    first, second, third = machine("first"), machine("second"), machine("third")
    came = threading.Event()
    at_request("/experience/00002/", came.set)
    training = first.start("train", "--cycles", str(CYCLES), "--name", "moved", *SETTINGS)
    assert came.wait(COMMAND_SECONDS)
    training.kill()
    training.communicate()

    def be_away() -> None:
        servers.s3.go_away()
        time.sleep(AWAY_SECONDS)
        servers.s3.come_back()

    at_request("/targets/00003/", be_away)
    told = second.dqn("train", "--resume", "moved")
    assert "has played 48 states" in told
    found = third.verify("moved")
    for name in ("digest", "cycle", "units", "metrics", "problems"):
        assert found[name] == undisturbed[name], name
    assert not found["problems"]
    assert third.dqn("inspect", "moved").startswith("s3://units/mlflow/")
    assert "champion" in first.dqn("share", "moved")
    assert "mean score" in third.dqn("evaluate", "models:/Breakout@champion", "--episodes", "1")
    assert "mean score" in third.dqn("evaluate", "moved", "--episodes", "1")
    assert SECRET.encode() not in first.text() + second.text() + third.text()
    kept = sorted(path.name for path in first.home.iterdir())
    assert not {"mlflow.db", "replay", "artifacts"} & set(kept), kept
    figure(2, "SIGKILL in mid-upload to S3, resumed on another machine", "the digest of the run of one machine")


def test_a_store_that_stays_away_ends_the_training_in_one_line_and_nothing_is_lost(
    undisturbed: dict[str, Any], servers: Servers, machine: Any, at_request: Any
) -> None:
    first = machine("first")
    at_request("/checkpoints/00002/", servers.s3.go_away)
    try:
        told = first.dqn("train", "--cycles", str(CYCLES), "--name", "stranded", *SETTINGS, status=1)
    finally:
        servers.s3.come_back()
    (line,) = [line for line in told.splitlines() if line.startswith("dqn: ")]
    assert "s3://" in line and "cannot be written" in line and "does not answer" in line
    assert "dqn train --resume " in line
    first.dqn("train", "--resume", "stranded")
    found = machine("second").verify("stranded")
    assert (found["digest"], found["problems"]) == (undisturbed["digest"], [])


def test_of_two_machines_that_train_one_run_one_ends_in_one_line(
    undisturbed: dict[str, Any], servers: Servers, machine: Any, figure: Tell
) -> None:
    first, second = machine("first"), machine("second")
    first.dqn("train", "--cycles", "1", "--name", "twice", *SETTINGS)
    (first.home / "locks").rename(first.home / "unlocked")
    both, arrived = threading.Barrier(2), []

    def judge(method: str, path: str) -> str:
        if method == "PUT" and "/experience/00002/manifest.json" in path and len(arrived) < 2:
            arrived.append(path)
            both.wait(COMMAND_SECONDS)  # until the other one is there, too
        return PASS

    servers.s3.judge = judge
    try:
        trainings = [each.start("train", "--resume", "twice", "--cycles", str(CYCLES)) for each in (first, second)]
        ends = [training.communicate(timeout=COMMAND_SECONDS) for training in trainings]
    finally:
        servers.s3.judge = lambda method, path: PASS
    statuses = [training.returncode for training in trainings]
    assert sorted(statuses) == [0, 1], ends
    told = ends[statuses.index(1)][1]
    (line,) = [line for line in told.splitlines() if line.startswith("dqn: ")]
    assert "/experience/00002 was committed meanwhile by flow run " in line and "trained twice" in line
    found = machine("third").verify("twice")
    assert (found["digest"], found["problems"]) == (undisturbed["digest"], [])
    figure(10, "two machines that train one run on S3", "one trains, the other is told in one line")


def test_metrics_wait_while_postgresql_is_away(
    undisturbed: dict[str, Any], servers: Servers, machine: Any, at_request: Any
) -> None:
    def restart() -> None:
        servers.postgresql.kill()
        time.sleep(AWAY_SECONDS)
        servers.postgresql.start()

    first = machine("first")
    at_request("/targets/00002/", restart)
    first.dqn("train", "--cycles", str(CYCLES), "--name", "forgotten", *SETTINGS)
    found = machine("second").verify("forgotten")
    assert (found["digest"], found["metrics"], found["problems"]) == (undisturbed["digest"], undisturbed["metrics"], [])
