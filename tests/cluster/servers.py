"""The servers that store the data of a cluster, on the loopback interface: S3, PostgreSQL, and MLflow on both."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from ports import free_port
from s3_server import BUCKET, S3Server

from flows.server.processes import answers, start_server, stop_server, wait_for_server

START_SECONDS = 180


class PostgreSQL:
    """A PostgreSQL server with a database of its own."""

    def __init__(self) -> None:
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
        self._programs = found[-1] if found else Path(shutil.which("postgres") or "/missing").parent
        if not (self._programs / "initdb").exists():
            pytest.fail("initdb of PostgreSQL was not found; install PostgreSQL (Debian: apt-get install postgresql)")
        self.port = free_port()
        self.uri = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
        self._home = Path(tempfile.mkdtemp(prefix="postgresql-"))
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root
            shutil.chown(self._home, "postgres", "postgres")
        arguments = ["--pgdata", str(self._home / "data"), "--username", "postgres", "--auth", "trust", "--no-sync"]
        self._program("initdb", *arguments).wait(START_SECONDS)

    def _program(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        user = "postgres" if os.geteuid() == 0 else None
        with (self._home / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [self._programs / name, *arguments], user=user, group=user, stdout=log, stderr=log, cwd="/"
            )

    def start(self) -> None:
        self._process = self._program(
            "postgres", "-D", str(self._home / "data"), "-h", "127.0.0.1", "-p", str(self.port), "-k", str(self._home)
        )
        deadline = time.monotonic() + START_SECONDS
        while self._program("pg_isready", "-h", "127.0.0.1", "-p", str(self.port)).wait(START_SECONDS):
            log = (self._home / "postgres.log").read_text
            assert self._process.poll() is None and time.monotonic() < deadline, log()
            time.sleep(0.1)

    def kill(self) -> None:
        """Send SIGKILL to the server, and wait for its children, which end when they notice that."""
        self._process.kill()
        self._process.wait()
        deadline = time.monotonic() + START_SECONDS
        children = ["pgrep", "--full", f"postgres.*{self._home}"]
        while subprocess.run(children, capture_output=True, check=False).stdout and time.monotonic() < deadline:
            time.sleep(0.1)
        (self._home / f".s.PGSQL.{self.port}.lock").unlink(missing_ok=True)

    def stop(self) -> None:
        self._process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(60)
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self._home)


class MLflow:
    """An MLflow server with its metadata in PostgreSQL and its artifacts on S3."""

    def __init__(self, directory: Path, database: PostgreSQL, s3: S3Server) -> None:
        self.port = free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self._command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        self._command += ["--backend-store-uri", database.uri, "--default-artifact-root", f"s3://{BUCKET}/mlflow"]
        self._command += ["--workers", "1"]
        quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "1", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        self._environment = {**os.environ, **quiet, **s3.environment}
        self._log = (directory / "mlflow.log").open("w+b")

    def start(self) -> None:
        self._process = start_server(self._command, self._environment, self._log)
        wait_for_server(lambda: answers(f"{self.address}/health"), "MLflow", self._process, self._log)

    def kill(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def stop(self) -> None:
        stop_server(self._process)
        self._log.close()


class Servers:
    """All three servers, and the environment of a machine that uses them."""

    def __init__(self, directory: Path) -> None:
        self.s3 = S3Server(directory)
        self.postgresql = PostgreSQL()
        self.s3.start()
        self.postgresql.start()
        self.mlflow = MLflow(directory, self.postgresql, self.s3)
        self.mlflow.start()

    def stop(self) -> None:
        self.mlflow.stop()
        self.postgresql.stop()
        self.s3.stop()

    @property
    def environment(self) -> dict[str, str]:
        return {
            **self.s3.environment,
            "MLFLOW_TRACKING_URI": self.mlflow.address,
            "DQN_REPLAY": f"s3://{BUCKET}/replay",
        }


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    servers = Servers(tmp_path_factory.mktemp("servers"))
    yield servers
    servers.stop()
