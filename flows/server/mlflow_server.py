"""The MLflow server: its command, its password, and the addresses of its pages."""

from __future__ import annotations

import base64
import json
import os
import secrets
import sys
import tempfile
import urllib.request
from contextlib import suppress

from flows.server.processes import answers, check_exposure, check_port, start_server, stop_server, wait_for_server
from storage.environment import MLFLOW_PASSWORD, MLFLOW_USER, server_environment
from storage.settings import Settings

FEWEST_CHARACTERS = 12  # of a password, as MLflow demands


def run_mlflow_ui(port: int | None) -> None:
    """Serve the MLflow UI until interrupted, on `port` or else on the port in the settings.

    Raises:
        ValueError: the port is out of range or in use.
        StorageError: the server did not start.
    """
    settings = Settings.from_environment()
    if port is not None:
        settings = settings.model_copy(update={"mlflow_port": port})
    check_port(settings.host, settings.mlflow_port, "--port")
    check_exposure(settings)
    # A file, because the server blocks when a pipe that is not read is full.
    with tempfile.TemporaryFile() as log_file:
        environment = server_environment(settings.home) | prepare_password(settings)
        server = start_server(mlflow_command(settings), environment, log_file)
        try:
            wait_for_server(lambda: answers(f"{settings.mlflow_address}/health"), "MLflow", server, log_file)
            print(f"MLflow UI: {runs_page(settings.mlflow_address)} (Ctrl-C stops it)", flush=True)
            server.wait()
        except KeyboardInterrupt:
            pass
        finally:
            stop_server(server)


def runs_page(address: str) -> str:
    """The page of the MLflow server at `address` that lists the runs of the game which was trained last.

    Without a run it is the list of experiments. The address itself would show MLflow's view for language models.
    """
    view = "workflowType=machine_learning"
    headers = {"Content-Type": "application/json"}
    if has_password():
        login = f"{os.environ[MLFLOW_USER]}:{os.environ[MLFLOW_PASSWORD]}"
        headers["Authorization"] = f"Basic {base64.b64encode(login.encode()).decode()}"
    request = urllib.request.Request(
        f"{address}/api/2.0/mlflow/experiments/search", data=b'{"max_results": 1000}', headers=headers
    )
    found: list[dict[str, str]] = []
    with suppress(OSError, ValueError), urllib.request.urlopen(request, timeout=5) as response:
        found = json.load(response).get("experiments", [])
    games = [experiment for experiment in found if experiment["name"] != "Default"]
    if not games:
        return f"{address}/#/experiments?{view}"
    newest = max(games, key=lambda experiment: int(experiment.get("last_update_time", 0)))
    return f"{address}/#/experiments/{newest['experiment_id']}/runs?{view}"


def has_password() -> bool:
    """Whether the MLflow server requires a password. The variables are those in which MLflow's clients have theirs.

    Raises:
        ValueError: only one of them is set, or the password is too short.
    """
    user, password = os.environ.get(MLFLOW_USER), os.environ.get(MLFLOW_PASSWORD)
    if not user and not password:
        return False
    if not user or not password:
        missing, given = (MLFLOW_USER, MLFLOW_PASSWORD) if not user else (MLFLOW_PASSWORD, MLFLOW_USER)
        raise ValueError(f"{given} is set, but {missing} is not; set both or none")
    if len(password) < FEWEST_CHARACTERS:
        raise ValueError(f"{MLFLOW_PASSWORD} is too short; it must have at least {FEWEST_CHARACTERS} characters")
    return True


def mlflow_command(settings: Settings) -> list[str]:
    """The command that serves the MLflow store of `settings`, with a password if there is one."""
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", settings.tracking_uri]
    command += ["--default-artifact-root", settings.artifacts("").as_uri(), "--workers", "1"]
    # Without a log line per request.
    command += ["--uvicorn-opts", "--log-level warning"]
    command += ["--app-name", "basic-auth"] if has_password() else []
    return [*command, "--host", settings.host, "--port", str(settings.mlflow_port)]


def prepare_password(settings: Settings) -> dict[str, str]:
    """Prepare the MLflow server of `settings` to require the password, and return its variables; none without one.

    MLflow stores users in a database. Each start makes a new one, so that the password is that of the environment.
    """
    if not has_password():
        return {}
    stem = settings.home / f"mlflow-{settings.mlflow_port}"  # several servers can have one home
    users, config = stem.with_suffix(".users.db"), stem.with_suffix(".auth.ini")
    users.unlink(missing_ok=True)
    users.touch(0o600)
    config.write_text(f"[mlflow]\ndefault_permission = NO_PERMISSIONS\ndatabase_uri = sqlite:///{users}\n")
    return {
        "MLFLOW_AUTH_CONFIG_PATH": str(config),
        "MLFLOW_AUTH_ADMIN_USERNAME": os.environ[MLFLOW_USER],
        "MLFLOW_AUTH_ADMIN_PASSWORD": os.environ[MLFLOW_PASSWORD],
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(32),
    }
