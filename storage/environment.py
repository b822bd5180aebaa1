"""Environment variables that this project reads itself and those that it sets for Prefect and MLflow.

Prefect and MLflow read their variables when they are imported. The packages `storage`, `tasks` and `flows` therefore
call `set_defaults` when they are imported, so every module of theirs, in any process, finds the defaults set. This
module imports nothing heavy.
"""

from __future__ import annotations

import logging
import os
from datetime import timedelta
from pathlib import Path

TRACEBACK = "DQN_TRACEBACK"  # set: an error that is expected is shown with its traceback, too
ON_FAILURE = "DQN_ON_FAILURE"  # a shell command that runs when a flow run fails or crashes
SERVED_HOME = "DQN_SERVED"  # every process below `dqn serve` has it: the home that is served

PREFECT_API_URL = "PREFECT_API_URL"
PREFECT_SERVER_PASSWORD = "PREFECT_SERVER_API_AUTH_STRING"  # the password that a Prefect server requires
PREFECT_CLIENT_PASSWORD = "PREFECT_API_AUTH_STRING"  # the password that a Prefect client sends
PREFECT_FLOW_RUN = "PREFECT__FLOW_RUN_ID"  # in the process of a flow run
MLFLOW_ALLOWED_HOSTS = "MLFLOW_SERVER_ALLOWED_HOSTS"
MLFLOW_USER, MLFLOW_PASSWORD = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"  # of clients and of the server

NO_TELEMETRY = {
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}

# MLflow retries a request for 15 minutes by default; with 5 retries it gives up after about a minute.
_MLFLOW_CLIENT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "5"}

# Without it MLflow starts eight processes for jobs that this project does not use.
_MLFLOW_SERVER = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}

# The terminal shows the progress of the command instead of Prefect's log.
_QUIET_PREFECT = {
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_INTERNAL_LEVEL": "CRITICAL",
}

# The server of a single training stores no events and watches for no automations. It records task runs in batches
# of 100, or every five seconds.
_EMBEDDED_PREFECT_SERVER = {
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "100",
}

_FLOW_RUN_RETENTION = timedelta(days=30)
_EVENT_RETENTION = timedelta(days=2)
_SERVE = {
    "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
    "PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD": str(int(_FLOW_RUN_RETENTION.total_seconds())),
    "PREFECT_SERVER_EVENTS_RETENTION_PERIOD": f"P{_EVENT_RETENTION.days}D",
    "PREFECT_LOGGING_SERVER_LEVEL": "WARNING",
    "PREFECT_WORKER_QUERY_SECONDS": "2",  # so that a flow run which a person starts or retries begins soon
}


def set_defaults() -> None:
    """Disable telemetry and shorten MLflow's retries, unless the user has set these variables."""
    _set_unless_set(NO_TELEMETRY | _MLFLOW_CLIENT)


def quiet_prefect() -> None:
    """Keep Prefect's log off the terminal. Must be called before Prefect is imported."""
    _set_unless_set(_QUIET_PREFECT)
    logging.raiseExceptions = False  # else a record that Prefect's server refuses prints a traceback


def wants_traceback() -> bool:
    """Whether the user has set `DQN_TRACEBACK`."""
    return bool(os.environ.get(TRACEBACK))


def server_environment(home: Path) -> dict[str, str]:
    """The environment of a server of `home`: that of this process, without telemetry."""
    return {**os.environ, **NO_TELEMETRY, **_MLFLOW_SERVER, "DQN_HOME": str(home)}


def embedded_server_environment() -> dict[str, str]:
    """The environment of the Prefect server that runs for a single training.

    The last three variables are those that Prefect itself sets for such a server.
    """
    return {
        **_EMBEDDED_PREFECT_SERVER,
        **os.environ,
        "PREFECT_UI_ENABLED": "0",
        "PREFECT__SERVER_EPHEMERAL": "1",
        "PREFECT__SERVER_FINAL": "1",
    }


def serve_environment(home: Path, prefect_address: str) -> dict[str, str]:
    """The environment of everything below `dqn serve`. Variables of the user, such as a database, take precedence."""
    environment = {
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{home / 'prefect.db'}",
        **_SERVE,
        **server_environment(home),
        PREFECT_API_URL: f"{prefect_address}/api",
        SERVED_HOME: str(home),
    }
    if password := os.environ.get(PREFECT_SERVER_PASSWORD):
        environment[PREFECT_CLIENT_PASSWORD] = password
    return environment


def _set_unless_set(values: dict[str, str]) -> None:
    for name, value in values.items():
        os.environ.setdefault(name, value)
