"""The command `dqn train`, killed and resumed: the seconds of a resume, and the digest of the other tests' trainer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import CrashRun, build
from trainer import CONFIG

RESUMES = int(os.environ.get("CRASH_RESUMES", "1"))

pytestmark = pytest.mark.crash

DQN = [sys.executable, "-m", "flows.cli"]
SETTINGS = [part for name, value in CONFIG.items() for part in ("--set", f"{name}={value}")]


def test_killed_command_resumes_within_seconds(
    ram_directory: Path,
    prefect_home: Path,
    monkeypatch: pytest.MonkeyPatch,
    figure: Callable[[int, str, str], None],
) -> None:
    """The resumed command ends with the digest that `trainer.train` gives."""
    monkeypatch.setenv("PREFECT_HOME", str(prefect_home))
    home, options, cycles = ram_directory / "command", ["--name", "killed", *SETTINGS], 100_000
    seconds = []
    for _ in range(RESUMES):
        training, waited = train_a_cycle(home, "--cycles", str(cycles), *options)
        seconds.append(waited)
        training.kill()
        for draft in home.glob("staging/*/experience-*"):  # otherwise the next training's draft is not recognized
            draft.rename(draft.with_name("left"))
        options = ["--resume", "killed"]
        assert training.wait() == -signal.SIGKILL
    cycles = max(checkpoints(home)) + 2
    training, waited = train_a_cycle(home, "--cycles", str(cycles), *options)
    seconds.append(waited)
    assert training.wait() == 0
    digest = CrashRun(home, home, "").outcome().digest
    assert digest == build(ram_directory / "not-the-command").finish(cycles).digest
    test = f"`dqn train --resume` after SIGKILL, {RESUMES} times, to the first new state"
    figure(11, test, f"{', '.join(f'{each:.1f}' for each in seconds[1:])} s; nothing committed is made again")


def train_a_cycle(home: Path, *options: str) -> tuple[subprocess.Popen[bytes], float]:
    """Start `dqn train` and wait for its next checkpoint.

    Returns the process, which goes on, and the seconds until it started to play.
    """
    before, began = checkpoints(home), time.monotonic()
    training = start_command(home, "train", *options)
    while not list(home.glob("staging/*/experience-*")):
        assert training.poll() is None
        time.sleep(0.01)
    seconds = time.monotonic() - began
    while checkpoints(home) == before:
        time.sleep(0.01)
    return training, seconds


def start_command(home: Path, *arguments: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "DQN_HOME": str(home)}
    return subprocess.Popen([*DQN, *arguments], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def checkpoints(home: Path) -> list[int]:
    return sorted(int(path.name) for path in home.glob("artifacts/*/*/artifacts/checkpoints/[0-9]*"))
