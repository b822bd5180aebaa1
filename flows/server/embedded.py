"""The Prefect server that `dqn train` starts."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import prefect
from prefect.server.api.server import SubprocessASGIServer
from prefect.settings import get_current_settings

from storage.environment import embedded_server_environment


class EmbeddedServer(SubprocessASGIServer):
    """Prefect's embedded server in a session of its own.

    Ctrl-C and signals to the process group then reach only the trainer, which still has to send the final state of
    its flow run to the server.
    """

    def _run_uvicorn_command(self) -> subprocess.Popen[Any]:
        application = [str(prefect.__module_path__.parent), "--factory", "prefect.server.api.server:create_app"]
        command = [sys.executable, "-m", "uvicorn", "--app-dir", *application, "--host", "127.0.0.1"]
        command += ["--port", str(self.port), "--log-level", "error", "--lifespan", "on"]
        environment = {
            **embedded_server_environment(),
            **get_current_settings().to_environment_variables(exclude_unset=True),
        }
        return subprocess.Popen(command, env=environment, start_new_session=True)
