"""What is done when a flow run fails, crashes or is cancelled."""

from __future__ import annotations

import logging
import os
import subprocess
from typing import Any

from prefect.logging import get_logger
from prefect.logging.loggers import flow_run_logger

from storage.environment import ON_FAILURE, wants_traceback
from storage.errors import StorageError

EXPECTED_ERRORS = (ValueError, StorageError, OSError)  # what a person can mend is told in one line, without a traceback
SECONDS = 60


def run_failure_command(flow: Any, flow_run: Any, state: Any) -> None:
    """Run the shell command in `DQN_ON_FAILURE`, if any, with what happened in its environment.

    `DQN_FLOW_RUN` is the flow run's id, `DQN_STATE` the name of its state, `DQN_MESSAGE` what it said.
    """
    command = os.environ.get(ON_FAILURE)
    if not command:
        return
    what = {"DQN_FLOW_RUN": str(flow_run.id), "DQN_STATE": str(state.name), "DQN_MESSAGE": str(state.message or "")}
    try:
        done = subprocess.run(command, shell=True, env={**os.environ, **what}, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        get_logger().warning("the command in %s was ended after %d seconds", ON_FAILURE, SECONDS)
        return
    if done.returncode:
        get_logger().warning("the command in %s ended with status %d", ON_FAILURE, done.returncode)


def log_retry_command(flow: Any, flow_run: Any, state: Any) -> None:
    """Write the command that goes on into the flow run's log."""
    flow_run_logger(flow_run, flow).info("go on with: prefect flow-run retry %s", flow_run.id)


def _in_one_line(record: logging.LogRecord) -> bool:
    """Leave the traceback out that Prefect logs beside the message of a failed flow run."""
    if record.exc_info and isinstance(record.exc_info[1], EXPECTED_ERRORS) and not wants_traceback():
        record.exc_info = None
    return True


logging.getLogger("prefect.flow_runs").addFilter(_in_one_line)
