"""The servers that people look at runs with, on the loopback interface."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import suppress
from typing import IO

from storage.errors import StorageError
from storage.settings import Settings

HOST = "127.0.0.1"
START_SECONDS = 90

_guards: list[subprocess.Popen[bytes]] = []  # their pipes stay open as long as this process lives


def start_embedded_prefect_server() -> None:
    """Start a Prefect server for this process alone, unless one is configured.

    Prefect stops it at an ordinary exit, after the last of the log was sent. A guard, which notices the
    end of this process by the pipe between them, stops it after any other: a killed trainer leaves no
    server behind.
    """
    from prefect.server.api.server import SubprocessASGIServer
    from prefect.settings import get_current_settings

    if get_current_settings().api.url:
        return
    server = SubprocessASGIServer()
    server.start()
    assert server.server_process
    guard = ["sh", "-c", 'read -r line; kill "$0"', str(server.server_process.pid)]
    _guards.append(subprocess.Popen(guard, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True))


def run_mlflow_ui(port: int) -> None:
    """Serve the MLflow UI of this installation's store until interrupted.

    Raises:
        ValueError: the port is out of range or taken.
        StorageError: the server did not start.
    """
    check_port(port)
    settings = Settings.from_environment()
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", settings.tracking_uri]
    command += ["--default-artifact-root", settings.artifacts("").as_uri(), "--workers", "1"]
    command += ["--host", HOST, "--port", str(port)]
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "1"}
    address = f"http://{HOST}:{port}"
    # A file, for a pipe that nobody reads would one day stop the server.
    with tempfile.TemporaryFile() as said:
        server = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=said, start_new_session=True
        )
        try:
            wait_for(f"{address}/health", server, said)
            print(f"MLflow UI: {address} (Ctrl-C stops it)", flush=True)
            server.wait()
        except KeyboardInterrupt:
            pass
        finally:
            stop(server)


def stop(server: subprocess.Popen[bytes]) -> None:
    """End a server that leads a session of its own, with all the processes it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(server.pid, number)
        with suppress(subprocess.TimeoutExpired):
            server.wait(10)


def check_port(port: int) -> None:
    """Raise a ValueError unless a server can listen on `port` of the loopback interface."""
    if not 1 <= port <= 65535:
        raise ValueError(f"port is {port}; it must be from 1 to 65535")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise ValueError(f"port {port} cannot be used ({error.strerror}); choose another with --port") from None


def wait_for(address: str, server: subprocess.Popen[bytes], said: IO[bytes]) -> None:
    """Return as soon as `address` answers.

    Raises:
        StorageError: the server ended before it did, or took too long.
    """
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            said.seek(0)
            lines = said.read().decode(errors="replace").strip().splitlines()
            raise StorageError(f"the server did not start: {lines[-1] if lines else 'it said nothing'}")
        with suppress(urllib.error.URLError, ConnectionError, TimeoutError), urllib.request.urlopen(address, timeout=2):
            return
        time.sleep(0.2)
    raise StorageError(f"{address} did not answer within {START_SECONDS} seconds")
