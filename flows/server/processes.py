"""Server processes: start, wait, check ports and stop."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from typing import IO, Any, NoReturn

from storage.environment import MLFLOW_ALLOWED_HOSTS, MLFLOW_PASSWORD, MLFLOW_USER, PREFECT_SERVER_PASSWORD
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


def check_exposure(settings: Settings) -> None:
    """Raise a ValueError if the servers would be reachable from other machines without access control."""
    if settings.is_loopback:
        return
    if settings.host in ("0.0.0.0", "::", "*"):
        raise ValueError(f"DQN_HOST is {settings.host}; it must be one address of this machine, not all of them")
    needed = {
        PREFECT_SERVER_PASSWORD: "user:password that Prefect requires",
        MLFLOW_USER: "user that MLflow requires",
        MLFLOW_PASSWORD: "its password, of at least 12 characters",
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
