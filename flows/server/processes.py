"""Server processes: start, wait, check ports and stop."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from typing import IO, Any, NoReturn

from storage.environment import MLFLOW_ALLOWED_HOSTS, PREFECT_SERVER_PASSWORD, server_environment
from storage.errors import StorageError
from storage.settings import Settings, without_password

START_SECONDS = 180
DRAIN_SECONDS = 30  # to send the last events and log records to Prefect's server


def prefect_unreachable(address: str | None) -> str:
    """The error message about a Prefect server that does not answer."""
    return f"the Prefect server {without_password(address or '')} does not answer"


def exit_after_draining(status: int) -> NoReturn:
    """Exit when Prefect's last events and log records are sent, or after `DRAIN_SECONDS`.

    By itself Prefect retries for seconds per task run, which takes hours if the server was down for a day.
    """
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    deadline = time.monotonic() + DRAIN_SECONDS
    for worker in (EventsWorker, APILogWorker):
        drained: Any = worker.drain_all(timeout=max(0.0, deadline - time.monotonic()))
        if drained[1]:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    sys.exit(status)


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
        server = start_server(mlflow_command(settings), server_environment(settings.home), log_file)
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
    request = urllib.request.Request(
        f"{address}/api/2.0/mlflow/experiments/search",
        data=b'{"max_results": 1000}',
        headers={"Content-Type": "application/json"},
    )
    found: list[dict[str, str]] = []
    with suppress(OSError, ValueError), urllib.request.urlopen(request, timeout=5) as response:
        found = json.load(response).get("experiments", [])
    games = [experiment for experiment in found if experiment["name"] != "Default"]
    if not games:
        return f"{address}/#/experiments?{view}"
    newest = max(games, key=lambda experiment: int(experiment.get("last_update_time", 0)))
    return f"{address}/#/experiments/{newest['experiment_id']}/runs?{view}"


def mlflow_command(settings: Settings) -> list[str]:
    """The command that serves the MLflow store of `settings`."""
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", settings.tracking_uri]
    command += ["--default-artifact-root", settings.artifacts("").as_uri(), "--workers", "1"]
    # Without a log line per request.
    command += ["--uvicorn-opts", "--log-level warning"]
    return [*command, "--host", settings.host, "--port", str(settings.mlflow_port)]


def check_exposure(settings: Settings) -> None:
    """Raise a ValueError if the servers would be reachable from other machines without access control."""
    if settings.is_loopback:
        return
    if settings.host in ("0.0.0.0", "::", "*"):
        raise ValueError(f"DQN_HOST is {settings.host}; it must be one address of this machine, not all of them")
    needed = {
        PREFECT_SERVER_PASSWORD: "user:password that Prefect requires",
        MLFLOW_ALLOWED_HOSTS: "host names that browsers may use, such as trainer.lan:5000",
    }
    missing = [f"{name} ({what})" for name, what in needed.items() if not os.environ.get(name)]
    if missing:
        raise ValueError(
            f"DQN_HOST is {settings.host}, which other machines can reach; set {' and '.join(missing)} first"
        )


def start_server(
    command: list[str], environment: dict[str, str], log_file: IO[bytes] | None
) -> subprocess.Popen[bytes]:
    """Start a server in a session of its own; its output goes to `log_file`, or where that of this process goes."""
    return subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=log_file, stderr=log_file, start_new_session=True
    )


def stop_server(server: subprocess.Popen[bytes]) -> None:
    """Terminate a server and its process group, and kill them if they do not exit within 10 seconds."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(server.pid, number)
        with suppress(subprocess.TimeoutExpired):
            server.wait(10)


def check_port(host: str, port: int, setting: str) -> None:
    """Raise a ValueError unless a server can listen on `port` of `host`; the message names `setting`."""
    if not 1 <= port <= 65535:
        raise ValueError(f"port is {port}; it must be from 1 to 65535")
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ValueError(
                f"port {port} cannot be used on {host} ({error.strerror}); choose another with {setting}"
            ) from None


def answers(address: str) -> bool:
    """Whether an HTTP server answers at `address` without an error."""
    with suppress(urllib.error.URLError, ConnectionError, TimeoutError), urllib.request.urlopen(address, timeout=2):
        return True
    return False


def wait_for_server(
    is_up: Callable[[], bool], name: str, server: subprocess.Popen[bytes], log_file: IO[bytes] | None
) -> None:
    """Wait until `is_up` returns True.

    Raises:
        StorageError: the server exited, or did not come up within `START_SECONDS`.
    """
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None and log_file is None:
            raise StorageError(f"{name} exited with status {server.returncode}")
        if server.poll() is not None and log_file is not None:
            log_file.seek(0)
            lines = log_file.read().decode(errors="replace").strip().splitlines()
            raise StorageError(f"{name} did not start: {lines[-1] if lines else 'it logged nothing'}")
        if is_up():
            return
        time.sleep(0.2)
    raise StorageError(f"{name} did not answer within {START_SECONDS} seconds")
