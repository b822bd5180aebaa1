"""A command of the user's that is run when a flow run fails or crashes."""

from __future__ import annotations

import os
import subprocess
from typing import Any

from prefect.logging import get_logger

COMMAND = "DQN_ON_FAILURE"
SECONDS = 60


def run_command(flow: Any, flow_run: Any, state: Any) -> None:
    """Run the shell command in `DQN_ON_FAILURE`, if any, with what happened in its environment.

    `DQN_FLOW_RUN` is the flow run's id, `DQN_STATE` the name of its state, `DQN_MESSAGE` what it said.
    """
    command = os.environ.get(COMMAND)
    if not command:
        return
    what = {"DQN_FLOW_RUN": str(flow_run.id), "DQN_STATE": str(state.name), "DQN_MESSAGE": str(state.message or "")}
    try:
        done = subprocess.run(command, shell=True, env={**os.environ, **what}, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        get_logger().warning("the command in %s was ended after %d seconds", COMMAND, SECONDS)
        return
    if done.returncode:
        get_logger().warning("the command in %s ended with status %d", COMMAND, done.returncode)
