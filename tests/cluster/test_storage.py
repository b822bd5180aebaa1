"""`dqn train` which stores everything on S3 and in PostgreSQL, on machines that share nothing else."""

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
OUTAGE_SECONDS = 10

Figure = Callable[[int, str, str], None]


@dataclass
class Machine:
    """A machine with a home of its own; `shared` is the environment which names the shared servers."""

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
        """Run a command to its end.

        Returns its standard output, or its standard error if a `status` other than 0 is expected.
        """
        out, error = (process := self.start(*arguments)).communicate(timeout=COMMAND_SECONDS)
        assert process.returncode == status, (arguments, out, error)
        return error if status else out

    def verify(self, run: str) -> dict[str, Any]:
        return json.loads(self.dqn("verify", run, "--json"))

    def contents(self) -> bytes:
        """The contents of all files of the home."""
        return b"".join(path.read_bytes() for path in self.home.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The output of `dqn verify` for the same run on one machine, with local storage and without faults."""
    machine = Machine(tmp_path_factory.mktemp("alone") / "home", {})
    machine.dqn("train", "--cycles", str(CYCLES), "--name", "alone", *SETTINGS)
    return machine.verify("alone")


@pytest.fixture
def machine(servers: Servers, tmp_path: Path) -> Callable[[str], Machine]:
    return lambda name: Machine(tmp_path / name, servers.environment)


@pytest.fixture
def at_request(servers: Servers) -> Callable[[str, Callable[[], None]], None]:
    """Calls a function at the first upload to S3 whose key contains `part`, and cuts that request off."""

    def arrange(part: str, function: Callable[[], None]) -> None:
        pending = [function]

        def judge(method: str, path: str) -> str:
            if method == "PUT" and part in path and pending:
                threading.Thread(target=pending.pop()).start()
                return CUT
            return PASS

        servers.s3.judge = judge

    yield arrange
    servers.s3.judge = lambda method, path: PASS


def test_run_moves_between_machines_with_the_same_digest(
    undisturbed: dict[str, Any], servers: Servers, machine: Any, at_request: Any, figure: Figure
) -> None:
    """The first machine is killed during an upload; the second one resumes, and waits for S3 during an outage."""
    first, second, third = machine("first"), machine("second"), machine("third")
    uploading = threading.Event()
    at_request("/experience/00002/", uploading.set)
    training = first.start("train", "--cycles", str(CYCLES), "--name", "moved", *SETTINGS)
    assert uploading.wait(COMMAND_SECONDS)
    training.kill()
    training.communicate()

    def interrupt_s3() -> None:
        servers.s3.go_away()
        time.sleep(OUTAGE_SECONDS)
        servers.s3.come_back()

    at_request("/targets/00003/", interrupt_s3)
    output = second.dqn("train", "--resume", "moved")
    assert "has played 48 states" in output
    found = third.verify("moved")
    for name in ("digest", "cycle", "units", "metrics", "problems"):
        assert found[name] == undisturbed[name], name
    assert not found["problems"]
    assert third.dqn("inspect", "moved").startswith("s3://units/mlflow/")
    assert "champion" in first.dqn("share", "moved")
    assert "mean score" in third.dqn("evaluate", "models:/Breakout@champion", "--episodes", "1")
    assert "mean score" in third.dqn("evaluate", "moved", "--episodes", "1")
    assert SECRET.encode() not in first.contents() + second.contents() + third.contents()
    local = sorted(path.name for path in first.home.iterdir())
    assert not {"mlflow.db", "replay", "artifacts"} & set(local), local
    figure(2, "SIGKILL during an upload to S3, resumed on another machine", "the digest of the run on one machine")


def test_unreachable_s3_ends_the_training_with_one_line(
    undisturbed: dict[str, Any], servers: Servers, machine: Any, at_request: Any
) -> None:
    """The line contains the command that resumes the run, and the resumed run loses nothing."""
    first = machine("first")
    at_request("/checkpoints/00002/", servers.s3.go_away)
    try:
        errors = first.dqn("train", "--cycles", str(CYCLES), "--name", "stranded", *SETTINGS, status=1)
    finally:
        servers.s3.come_back()
    (line,) = [line for line in errors.splitlines() if line.startswith("dqn: ")]
    assert "s3://" in line and "cannot be written" in line and "does not answer" in line
    assert "dqn train --resume " in line
    first.dqn("train", "--resume", "stranded")
    found = machine("second").verify("stranded")
    assert (found["digest"], found["problems"]) == (undisturbed["digest"], [])


def test_second_machine_on_one_run_is_refused(
    undisturbed: dict[str, Any], servers: Servers, machine: Any, figure: Figure
) -> None:
    """The first commit waits for the end of one of the machines, so that the run does not end before that."""
    first, second = machine("first"), machine("second")
    first.dqn("train", "--cycles", "1", "--name", "twice", *SETTINGS)
    refused = threading.Event()

    def judge(method: str, path: str) -> str:
        if method == "PUT" and "/experience/00002/manifest.json" in path:
            assert refused.wait(COMMAND_SECONDS)
        return PASS

    servers.s3.judge = judge
    try:
        trainings = [each.start("train", "--resume", "twice", "--cycles", str(CYCLES)) for each in (first, second)]
        while all(training.poll() is None for training in trainings):
            time.sleep(0.1)
        refused.set()
        ends = [training.communicate(timeout=COMMAND_SECONDS) for training in trainings]
    finally:
        refused.set()
        servers.s3.judge = lambda method, path: PASS
    statuses = [training.returncode for training in trainings]
    assert sorted(statuses) == [0, 1], ends
    errors = ends[statuses.index(1)][1]
    (line,) = [line for line in errors.splitlines() if line.startswith("dqn: ")]
    assert f"run twice is being trained by process {trainings[statuses.index(0)].pid} on " in line
    found = machine("third").verify("twice")
    assert (found["digest"], found["problems"]) == (undisturbed["digest"], [])
    figure(10, "two machines that train one run on S3", "one trains, the other ends with a one-line error")


def test_metrics_are_complete_after_a_postgresql_outage(
    undisturbed: dict[str, Any], servers: Servers, machine: Any, at_request: Any
) -> None:
    def restart() -> None:
        servers.postgresql.kill()
        time.sleep(OUTAGE_SECONDS)
        servers.postgresql.start()

    first = machine("first")
    at_request("/targets/00002/", restart)
    first.dqn("train", "--cycles", str(CYCLES), "--name", "forgotten", *SETTINGS)
    found = machine("second").verify("forgotten")
    assert (found["digest"], found["metrics"], found["problems"]) == (undisturbed["digest"], undisturbed["metrics"], [])
