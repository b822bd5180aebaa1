"""The Prefect server of a single training."""

from __future__ import annotations

import atexit
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable

import prefect
from prefect.settings import get_current_settings

from flows.server.processes import answers, prefect_unreachable, start_server, stop_server, wait_for_server
from storage.environment import PREFECT_API_URL, embedded_server_environment
from storage.errors import StorageError
from storage.settings import without_password

_guards: list[subprocess.Popen[bytes]] = []  # keeps their pipes open until this process ends


def start_embedded_prefect_server(meanwhile: Callable[[], None] = lambda: None) -> None:
    """Start a Prefect server for this process, or check that the configured one answers.

    The server is in a session of its own, so that Ctrl-C reaches only the trainer, which still has to send the final
    state of its flow run. The server is stopped when this process exits, after Prefect has sent the last log records.
    If this process is killed, a guard process stops it: its `read` returns when the pipe from this process closes.

    Prefect can start such a server itself, but would import the code of the server into this process, too, which takes
    three seconds.

    Args:
        meanwhile: called while the server starts; it is called as well when no server has to be started.

    Raises:
        StorageError: the configured server does not answer, or the new one does not start.
    """
    if address := get_current_settings().api.url:
        _check_answers(address)
        meanwhile()
        return
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    api = f"http://127.0.0.1:{port}/api"
    settings = get_current_settings().to_environment_variables(exclude_unset=True)
    server = start_server(embedded_server_command(port), {**embedded_server_environment(), **settings}, None)
    atexit.register(stop_server, server)
    guard = ["sh", "-c", 'read -r line; kill "$0"', str(server.pid)]
    _guards.append(subprocess.Popen(guard, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True))
    meanwhile()
    wait_for_server(lambda: answers(f"{api}/health"), "the Prefect server of this training", server, None)
    os.environ[PREFECT_API_URL] = api
    os.environ.setdefault("PREFECT_UI_URL", "")  # it serves no UI
    prefect.context.refresh_global_settings_context()


def embedded_server_command(port: int) -> list[str]:
    """The command line of a Prefect server on `port` of the loopback interface."""
    application = [str(prefect.__module_path__.parent), "--factory", "prefect.server.api.server:create_app"]
    command = [sys.executable, "-m", "uvicorn", "--app-dir", *application, "--host", "127.0.0.1"]
    return [*command, "--port", str(port), "--log-level", "error", "--lifespan", "on"]


def _check_answers(address: str) -> None:
    try:
        urllib.request.urlopen(f"{without_password(address)}/health", timeout=10).close()
    except urllib.error.HTTPError:
        pass  # the server answers, even if with an error
    except OSError:
        raise StorageError(f"{prefect_unreachable(address)}; start it, or unset PREFECT_API_URL") from None
