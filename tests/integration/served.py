"""Real servers in processes of their own, which tests can kill and restart."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from flows.server.processes import answers, start_server, stop_server, wait_for_server
from storage.environment import server_environment
from storage.settings import Settings


class Server:
    """A server process; `health` is the URL that answers when it is up."""

    def __init__(self, settings: Settings, command: list[str], health: str, **environment: str) -> None:
        self.settings = settings
        self.environment = {**server_environment(settings.home), **environment}
        self._command, self._health = command, health
        self._log = (settings.home / f"{Path(command[2]).name}.log").open("w+b")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server and wait until it answers."""
        self.process = start_server(self._command, self.environment, self._log)
        wait_for_server(lambda: answers(self._health), self._command[2], self.process, self._log)

    def stop(self) -> None:
        """Terminate the process and its children."""
        assert self.process is not None
        stop_server(self.process)
        self._log.close()

    def kill(self) -> None:
        """Kill the process and its children."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
