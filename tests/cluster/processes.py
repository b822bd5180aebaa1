"""A cluster on the loopback interface; each of its programs has a process group of its own, so a test can kill it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from flows.server.processes import answers

SECONDS = 300  # time limit of every wait, enough for a slow machine
NO_PAGES = ("--no-dashboard", "--dashboard-address", "127.0.0.1:0")
DQN = (sys.executable, "-m", "flows.cli")


def wait_until(happened: Callable[[], object], event: str, every: float = 0.1) -> None:
    """Check `happened` every `every` seconds until it is true; fails after SECONDS with the name of the `event`."""
    deadline = time.monotonic() + SECONDS
    while not happened():
        assert time.monotonic() < deadline, f"{event}: not within {SECONDS} seconds"
        time.sleep(every)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Cluster:
    """A Prefect server, a Dask scheduler and Dask workers, each with a log in the directory `logs`."""

    def __init__(self, logs: Path, environment: Mapping[str, str], protocol: str = "tcp") -> None:
        self.logs = logs
        self.protocol = protocol
        self.prefect, self.scheduler = (f"127.0.0.1:{free_port()}" for _ in range(2))
        self.environment = {
            **os.environ,
            "PREFECT_HOME": str(logs / "prefect"),
            "PREFECT_API_URL": f"http://{self.prefect}/api",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            **environment,
        }
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def settings(self) -> dict[str, str]:
        """The environment of a training on this cluster."""
        return {**self.environment, "DQN_CLUSTER": self.address}

    @property
    def address(self) -> str:
        """The address of the Dask scheduler."""
        return f"{self.protocol}://{self.scheduler}"

    def start(self, name: str, *command: str, environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        with (self.logs / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command, env=environment or self.environment, stdout=log, stderr=log, start_new_session=True
            )
        self.running[name] = process
        return process

    def start_servers(self) -> None:
        port = self.prefect.rpartition(":")[2]
        self.start("prefect", sys.executable, "-m", "prefect", "server", "start", "--port", port, "--no-services")
        self.start_scheduler()
        wait_until(lambda: answers(f"http://{self.prefect}/api/health"), "the Prefect server")

    def start_scheduler(self) -> None:
        host, _, port = self.scheduler.partition(":")
        command = [sys.executable, "-m", "dask", "scheduler", "--host", host, "--port", port, *NO_PAGES]
        self.start("scheduler", *command, "--protocol", self.protocol)

    def start_worker(self, name: str, resource: str, environment: Mapping[str, str] | None = None, *more: str) -> None:
        options = ["--nthreads", "1", "--resources", f"{resource}=1", "--name", name, "--host", "127.0.0.1"]
        options += ["--local-directory", str(self.logs / name), "--memory-limit", "0", *NO_PAGES]
        command = [sys.executable, "-m", "dask", "worker", self.address, *options, *more]
        self.start(name, *command, environment=environment)

    def output(self, name: str) -> str:
        """Everything that a process has printed."""
        return (self.logs / f"{name}.log").read_text()

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        """Send a signal to a process and everything that it started, as if its machine had died."""
        process = self.running.pop(name)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        process.wait(60)

    def stop(self) -> None:
        for name in list(self.running):
            self.kill(name)
