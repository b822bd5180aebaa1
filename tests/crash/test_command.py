"""The command itself, killed and resumed: what its user waits for, and that these tests train what it trains."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from harness import build
from trainer import CONFIG

RESUMES = int(os.environ.get("CRASH_RESUMES", "1"))
DQN = [sys.executable, "-m", "flows.cli"]


def test_the_command_resumes_within_seconds_what_was_killed(
    memory: Path, figure: Callable[[int, str, str], None]
) -> None:
    home = memory / "command"
    environment = {**os.environ, "DQN_HOME": str(home)}
    settings = [part for name, value in CONFIG.items() for part in ("--set", f"{name}={value}")]
    wanted, seconds = ["--name", "killed", *settings], []
    for _ in range(RESUMES + 1):
        before = checkpoints(home)
        began = time.monotonic()
        training = subprocess.Popen(
            [*DQN, "train", "--cycles", "100000", *wanted],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while not list(home.glob("staging/*/experience-*")):
            assert training.poll() is None
            time.sleep(0.01)
        seconds.append(time.monotonic() - began)
        while checkpoints(home) == before:
            time.sleep(0.01)
        training.kill()
        training.wait()
        wanted = ["--resume", "killed"]
        for left in home.glob("staging/*/experience-*"):  # of this one, for the next time
            left.rename(left.with_name("left"))
    cycles = max(map(int, checkpoints(home))) + 1
    subprocess.run([*DQN, "train", "--cycles", str(cycles), *wanted], env=environment, capture_output=True, check=True)
    told = subprocess.run([*DQN, "verify", "killed", "--json"], env=environment, capture_output=True, check=True)
    laboratory = build(memory / "not-the-command")
    assert json.loads(told.stdout)["digest"] == laboratory.finish(cycles).digest
    tried = f"`dqn train --resume` after SIGKILL, {RESUMES} times, to the first new state"
    figure(11, tried, f"{', '.join(f'{each:.1f}' for each in seconds[1:])} s; nothing committed is made again")


def checkpoints(home: Path) -> list[str]:
    return sorted(path.name for path in home.glob("artifacts/*/*/artifacts/checkpoints/[0-9]*"))
