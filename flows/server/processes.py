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
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import IO, Any, NoReturn

from storage.environment import MLFLOW_ALLOWED_HOSTS, PREFECT_SERVER_PASSWORD, server_environment
from storage.errors import StorageError
from storage.settings import Settings, without_password

START_SECONDS = 180
LEAVE_SECONDS = 30  # for what Prefect's server has still to hear

_guards: list[subprocess.Popen[bytes]] = []  # their pipes stay open as long as this process lives


def start_embedded_prefect_server(meanwhile: Callable[[], None] = lambda: None) -> None:
    """Start a Prefect server for this process alone, unless one is configured, which then must answer.

    `meanwhile` is done in either case.

    Prefect stops it at an ordinary exit, after the last of the log was sent. A guard, which notices the
    end of this process by the pipe between them, stops it after any other: a killed trainer leaves no
    server behind.

    Raises:
        StorageError: the configured server does not answer.
    """
    from prefect.client import orchestration
    from prefect.settings import get_current_settings

    from flows.server.embedded import EmbeddedServer

    assert orchestration  # imported here, for two threads that import it stand in each other's way
    if address := get_current_settings().api.url:
        _check_answers(address)
        meanwhile()
        return
    server = EmbeddedServer()
    with ThreadPoolExecutor(1) as pool:
        starting = pool.submit(server.start)
        meanwhile()
        starting.result()
    assert server.server_process
    guard = ["sh", "-c", 'read -r line; kill "$0"', str(server.server_process.pid)]
    _guards.append(subprocess.Popen(guard, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True))


def _check_answers(address: str) -> None:
    try:
        urllib.request.urlopen(f"{without_password(address)}/health", timeout=10).close()
    except urllib.error.HTTPError:
        pass  # that is an answer, too
    except OSError:
        raise StorageError(f"{prefect_unreachable(address)}; start it, or unset PREFECT_API_URL") from None


def prefect_unreachable(address: str | None) -> str:
    """What to say of a Prefect server that does not answer."""
    return f"the Prefect server {without_password(address or '')} does not answer"


def exit_after_draining(status: int) -> NoReturn:
    """Exit, as soon as Prefect's server heard of the last tasks, or is given up.

    Prefect alone would go on trying for seconds for every task, which are hours after a day without the server.
    """
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    deadline = time.monotonic() + LEAVE_SECONDS
    for worker in (EventsWorker, APILogWorker):
        drained: Any = worker.drain_all(timeout=max(0.0, deadline - time.monotonic()))
        if drained[1]:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    sys.exit(status)


def run_mlflow_ui(port: int | None) -> None:
    """Serve the MLflow UI of this installation's store until interrupted.

    Raises:
        ValueError: the port is out of range or taken.
        StorageError: the server did not start.
    """
    settings = Settings.from_environment()
    if port is not None:
        settings = settings.model_copy(update={"mlflow_port": port})
    check_port(settings.host, settings.mlflow_port, "--port")
    check_exposure(settings)
    # A file, for a pipe that nobody reads would one day stop the server.
    with tempfile.TemporaryFile() as log_file:
        server = start_server(mlflow_command(settings), server_environment(settings.home), log_file)
        try:
            wait_for_server(lambda: responds(f"{settings.mlflow_address}/health"), "MLflow", server, log_file)
            print(f"MLflow UI: {settings.mlflow_address} (Ctrl-C stops it)", flush=True)
            server.wait()
        except KeyboardInterrupt:
            pass
        finally:
            stop_server(server)


def mlflow_command(settings: Settings) -> list[str]:
    """The command that serves the MLflow store of this installation."""
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", settings.tracking_uri]
    command += ["--default-artifact-root", settings.artifacts("").as_uri(), "--workers", "1"]
    # Without a line for each request: the log must not grow as long as somebody looks at the UI.
    command += ["--uvicorn-opts", "--log-level warning"]
    return [*command, "--host", settings.host, "--port", str(settings.mlflow_port)]


def check_exposure(settings: Settings) -> None:
    """Raise a ValueError if others could reach the servers without what keeps strangers out."""
    if settings.is_loopback:
        return
    if settings.host in ("0.0.0.0", "::", "*"):
        raise ValueError(f"DQN_HOST is {settings.host}; name the one address of this machine that others use")
    needed = {
        PREFECT_SERVER_PASSWORD: "user:password that Prefect asks for",
        MLFLOW_ALLOWED_HOSTS: "host names that browsers may use, such as trainer.lan:5000",
    }
    missing = [f"{name} ({what})" for name, what in needed.items() if not os.environ.get(name)]
    if missing:
        raise ValueError(f"DQN_HOST is {settings.host}, which others can reach; set {' and '.join(missing)} first")


def start_server(command: list[str], environment: dict[str, str], log_file: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start a server as the leader of a session of its own; what it says goes to the file `log_file`."""
    return subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=log_file, stderr=log_file, start_new_session=True
    )


def stop_server(server: subprocess.Popen[bytes]) -> None:
    """End a server that leads a session of its own, with all the processes it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(server.pid, number)
        with suppress(subprocess.TimeoutExpired):
            server.wait(10)


def check_port(host: str, port: int, setting: str) -> None:
    """Raise a ValueError unless a server can listen on `port` of `host`; `setting` chooses another."""
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


def responds(address: str) -> bool:
    """Whether an HTTP server answers there."""
    with suppress(urllib.error.URLError, ConnectionError, TimeoutError), urllib.request.urlopen(address, timeout=2):
        return True
    return False


def wait_for_server(is_up: Callable[[], bool], name: str, server: subprocess.Popen[bytes], log_file: IO[bytes]) -> None:
    """Return as soon as the server is up.

    Raises:
        StorageError: it ended before that, or took too long.
    """
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            log_file.seek(0)
            lines = log_file.read().decode(errors="replace").strip().splitlines()
            raise StorageError(f"{name} did not start: {lines[-1] if lines else 'it log_file nothing'}")
        if is_up():
            return
        time.sleep(0.2)
    raise StorageError(f"{name} did not answer within {START_SECONDS} seconds")
