"""The Prefect server that `dqn train` starts."""

from __future__ import annotations

import atexit
import os
import socket
import subprocess
import sys
import time
from contextlib import suppress

import prefect
from prefect.settings import get_current_settings

from flows.server.processes import START_SECONDS, answers
from storage.environment import PREFECT_API_URL, embedded_server_environment
from storage.errors import StorageError


class EmbeddedServer:
    """A Prefect server in a process and a session of its own, which is stopped when this process exits.

    Ctrl-C and signals to the process group then reach only the trainer, which still has to send the final state of
    its flow run to the server.

    Prefect can start such a server itself, but would import the code of the server into this process, too, which takes
    three seconds.
    """

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self._api = f"http://127.0.0.1:{self._port}/api"
        application = [str(prefect.__module_path__.parent), "--factory", "prefect.server.api.server:create_app"]
        command = [sys.executable, "-m", "uvicorn", "--app-dir", *application, "--host", "127.0.0.1"]
        command += ["--port", str(self._port), "--log-level", "error", "--lifespan", "on"]
        environment = {
            **embedded_server_environment(),
            **get_current_settings().to_environment_variables(exclude_unset=True),
        }
        self.process = subprocess.Popen(command, env=environment, start_new_session=True)
        atexit.register(self.stop)

    def wait(self) -> None:
        """Wait until the server answers, and make it the server of this process.

        Raises:
            StorageError: the server exited, or did not answer within `START_SECONDS`.
        """
        deadline = time.monotonic() + START_SECONDS
        while not answers(f"{self._api}/health"):
            if self.process.poll() is not None:
                raise StorageError(f"the Prefect server of this training exited with status {self.process.returncode}")
            if time.monotonic() > deadline:
                raise StorageError(f"the Prefect server of this training did not answer within {START_SECONDS} seconds")
            time.sleep(0.1)
        os.environ[PREFECT_API_URL] = self._api
        os.environ.setdefault("PREFECT_UI_URL", "")  # it serves no UI
        prefect.context.refresh_global_settings_context()

    def stop(self) -> None:
        """Terminate the server, or kill it if that takes longer than five seconds."""
        self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        self.process.kill()
        self.process.wait()
