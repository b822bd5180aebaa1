"""Hooks that run when a flow run fails, crashes or is cancelled."""

from __future__ import annotations

import logging
import os
import subprocess
from typing import Any

from prefect.logging import get_logger
from prefect.logging.loggers import flow_run_logger

from storage.environment import ON_FAILURE, wants_traceback
from storage.errors import StorageError

EXPECTED_ERRORS = (ValueError, StorageError, OSError, MemoryError)  # logged in one line, without a traceback
TIMEOUT_SECONDS = 60


def run_failure_command(flow: Any, flow_run: Any, state: Any) -> None:
    """Run the shell command in the variable `DQN_ON_FAILURE`, if it is set.

    The command's environment has `DQN_FLOW_RUN`, the id of the flow run, `DQN_STATE`, the name of its state, and
    `DQN_MESSAGE`, the message of the state.
    """
    command = os.environ.get(ON_FAILURE)
    if not command:
        return
    variables = {
        "DQN_FLOW_RUN": str(flow_run.id),
        "DQN_STATE": str(state.name),
        "DQN_MESSAGE": str(state.message or ""),
    }
    try:
        done = subprocess.run(
            command, shell=True, env={**os.environ, **variables}, timeout=TIMEOUT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        get_logger().warning("the command in %s was killed after %d seconds", ON_FAILURE, TIMEOUT_SECONDS)
        return
    if done.returncode:
        get_logger().warning("the command in %s exited with status %d", ON_FAILURE, done.returncode)


def log_retry_command(flow: Any, flow_run: Any, state: Any) -> None:
    """Log the command that retries the flow run."""
    flow_run_logger(flow_run, flow).info("retry with: prefect flow-run retry %s", flow_run.id)


def _remove_traceback(record: logging.LogRecord) -> bool:
    """Remove the traceback of an expected error from the log record of a failed flow run."""
    if record.exc_info and isinstance(record.exc_info[1], EXPECTED_ERRORS) and not wants_traceback():
        record.exc_info = None
    return True


logging.getLogger("prefect.flow_runs").addFilter(_remove_traceback)
