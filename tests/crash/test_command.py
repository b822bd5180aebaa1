"""The command itself, killed and resumed: what its user waits for, and that these tests train what it trains."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from harness import Laboratory, build
from trainer import CONFIG

RESUMES = int(os.environ.get("CRASH_RESUMES", "1"))
DQN = [sys.executable, "-m", "flows.cli"]


def test_the_command_resumes_within_seconds_what_was_killed(
    memory: Path, figure: Callable[[int, str, str], None]
) -> None:
    home = memory / "command"
    settings = [part for name, value in CONFIG.items() for part in ("--set", f"{name}={value}")]
    wanted, seconds, cycles = ["--name", "killed", *settings], [], 100_000
    for number in range(RESUMES + 1):
        before = checkpoints(home)
        if number == RESUMES:
            cycles = max(before) + 2
        began = time.monotonic()
        training = start_command(home, "train", "--cycles", str(cycles), *wanted)
        while not list(home.glob("staging/*/experience-*")):
            assert training.poll() is None
            time.sleep(0.01)
        seconds.append(time.monotonic() - began)
        while checkpoints(home) == before:
            time.sleep(0.01)
        if number < RESUMES:
            training.kill()
            for left in home.glob("staging/*/experience-*"):  # by which the next one's is told apart
                left.rename(left.with_name("left"))
        wanted = ["--resume", "killed"]
        assert training.wait() == (0 if number == RESUMES else -signal.SIGKILL)
    digest = Laboratory(home, home, "").outcome().digest
    assert digest == build(memory / "not-the-command").finish(cycles).digest
    tried = f"`dqn train --resume` after SIGKILL, {RESUMES} times, to the first new state"
    figure(11, tried, f"{', '.join(f'{each:.1f}' for each in seconds[1:])} s; nothing committed is made again")


def start_command(home: Path, *arguments: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "DQN_HOME": str(home)}
    return subprocess.Popen([*DQN, *arguments], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def checkpoints(home: Path) -> list[int]:
    return sorted(int(path.name) for path in home.glob("artifacts/*/*/artifacts/checkpoints/[0-9]*"))
