"""`dqn serve`: a Prefect server, an MLflow server and a worker, until Ctrl-C."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING

import psutil

from flows.server.processes import (
    answers,
    check_port,
    check_safe,
    mlflow_command,
    server_environment,
    start,
    stop,
    wait_until,
)
from storage.errors import StorageError
from storage.settings import Settings

if TYPE_CHECKING:
    from flows.server.reaper import Reaper

POOL, WORKER = "local", "dqn"
MARK = "DQN_SERVED"  # in the environment of every process below `dqn serve`, however deep: the home it serves
CHECKOUT = Path(__file__).resolve().parents[2]
RETENTION = timedelta(days=30)  # of finished flow runs in the Prefect database
EVENT_RETENTION = timedelta(days=2)
MOST_RESTARTS = 5  # of a server within an hour
STOP_SECONDS = 30
REAP_SECONDS = 60


@dataclass
class Service:
    """One of the servers, as a process that is started again when it dies."""

    name: str
    command: list[str]
    environment: dict[str, str]
    said: IO[bytes]
    process: subprocess.Popen[bytes] | None = None
    starts: list[float] = field(default_factory=list)

    def start(self) -> subprocess.Popen[bytes]:
        """Start it.

        Raises:
            StorageError: it was started too often.
        """
        now = time.monotonic()
        self.starts = [*(began for began in self.starts if began > now - 3600), now]
        if len(self.starts) > MOST_RESTARTS + 1:
            raise StorageError(f"{self.name} ended {MOST_RESTARTS + 1} times within an hour; see {self.said.name}")
        self.process = start(self.command, self.environment, self.said)
        return self.process


def serve() -> None:
    """Start everything, deploy prefect.yaml, and look after it until interrupted.

    Raises:
        ValueError: a setting cannot be used, such as a port that is taken.
        StorageError: something is served already, or a server does not start.
    """
    settings = Settings.from_environment()
    check_safe(settings)
    with _only_one(settings):
        _end(_processes(settings))  # what a killed `dqn serve` left behind
        check_port(settings.host, settings.prefect_port, "DQN_PREFECT_PORT")
        services = _services(settings)
        if "MLflow" in services:
            check_port(settings.host, settings.mlflow_port, "DQN_MLFLOW_PORT")
        try:
            _start(services, settings)
            _tell(settings)
            _look_after(services, settings)
        except KeyboardInterrupt:
            pass
        finally:
            _stop(services, settings)


@contextmanager
def _only_one(settings: Settings) -> Iterator[None]:
    path = settings.lock("serve")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise StorageError(f"already serving: {file.read().strip()}") from None
        file.truncate(0)
        addresses = f"Prefect at {settings.prefect_address}, MLflow at {settings.mlflow_address}"
        file.write(f"{addresses}, by process {os.getpid()} since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        file.flush()
        yield


def _services(settings: Settings) -> dict[str, Service]:
    """What to start, in order. With an MLflow server of the user's own there is none to start."""
    prefect = [sys.executable, "-m", "prefect"]
    address = ["--host", settings.host, "--port", str(settings.prefect_port)]
    commands = {"Prefect": [*prefect, "server", "start", *address]}
    if not settings.tracking_uri.startswith(("http://", "https://")):
        commands["MLflow"] = mlflow_command(settings)
    commands["worker"] = [*prefect, "worker", "start", "--pool", POOL, "--type", "process", "--name", WORKER]
    environment, logs = _environment(settings), settings.home / "logs"
    logs.mkdir(exist_ok=True)
    services = {}
    for name, command in commands.items():
        log = logs / f"{name.lower()}.log"
        if log.exists():
            log.replace(log.with_suffix(".log.1"))
        services[name] = Service(name, command, environment, log.open("wb+"))
    return services


def _environment(settings: Settings) -> dict[str, str]:
    """The environment of all that is served; a database of the user's own is kept."""
    environment = {
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{settings.home / 'prefect.db'}",
        "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
        "PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD": str(int(RETENTION.total_seconds())),
        "PREFECT_SERVER_EVENTS_RETENTION_PERIOD": f"P{EVENT_RETENTION.days}D",
        "PREFECT_LOGGING_SERVER_LEVEL": "WARNING",
        "PREFECT_WORKER_QUERY_SECONDS": "2",  # who starts or retries something watches
        **server_environment(settings),
        "PREFECT_API_URL": f"{settings.prefect_address}/api",
        MARK: str(settings.home),
    }
    if password := os.environ.get("PREFECT_SERVER_API_AUTH_STRING"):
        environment["PREFECT_API_AUTH_STRING"] = password
    return environment


def _start(services: dict[str, Service], settings: Settings) -> None:
    """Start the servers side by side, then the worker and the deployments."""
    print(f"starting {', '.join(services)}; their logs are in {settings.home / 'logs'}", flush=True)
    health = {"Prefect": f"{settings.prefect_address}/api/health", "MLflow": f"{settings.mlflow_address}/health"}
    servers = {name: services[name].start() for name in health if name in services}
    for name, server in servers.items():
        wait_until(partial(answers, health[name]), name, server, services[name].said)
    worker = services["worker"]
    # Only now is Prefect imported here, with the settings that its client shall have.
    os.environ.update({name: value for name, value in worker.environment.items() if name.startswith("PREFECT_")})
    from flows.server import work_pool

    began = datetime.now(UTC)
    work_pool.prepare(POOL, settings)
    _say(_reaper(settings).reap(sure=True))
    process = worker.start()
    _deploy(worker.environment)
    wait_until(lambda: work_pool.has_worker(POOL, WORKER, began), "the worker", process, worker.said)


def _deploy(environment: dict[str, str]) -> None:
    """Register everything in prefect.yaml."""
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    done = subprocess.run(
        command, cwd=CHECKOUT, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise StorageError(f"the deployments in prefect.yaml were refused: {lines[-1] if lines else 'no reason given'}")


def _tell(settings: Settings) -> None:
    print(
        f"Prefect UI: {settings.prefect_address}\n"
        f"MLflow UI:  {settings.mlflow_address}\n"
        "in another terminal:\n"
        f"  source {CHECKOUT / '.venv/bin/activate'}\n"
        f"  export PREFECT_API_URL={settings.prefect_address}/api\n"
        "  prefect deployment run dqn/train -p preset=fast -p states=200000 --watch\n"
        "Ctrl-C stops it all; what was training goes on with: prefect flow-run retry ID",
        flush=True,
    )


def _look_after(services: dict[str, Service], settings: Settings) -> None:
    """Start again what dies, and mark the flow runs and trainings that died, until interrupted."""
    reaper, reaped = _reaper(settings), time.monotonic()
    while True:
        for service in services.values():
            if service.process and service.process.poll() is not None:
                print(f"{service.name} ended ({service.process.returncode}); starting it again", flush=True)
                if service is services["worker"]:
                    # Nobody listens to its flow runs any more, or could cancel them.
                    _end([process for process in _processes(settings) if _flow_run(process)])
                    _say(reaper.reap(sure=True))
                service.start()
        if time.monotonic() - reaped > REAP_SECONDS:
            _say(reaper.reap())
            reaped = time.monotonic()
        time.sleep(1)


def _reaper(settings: Settings) -> Reaper:
    from flows.server.reaper import Reaper

    return Reaper(WORKER, lambda: {_flow_run(process) for process in _processes(settings)})


def _say(lines: list[str]) -> None:
    for line in lines:
        print(line, flush=True)


def _stop(services: dict[str, Service], settings: Settings) -> None:
    """End the flow runs so that they can go on later, then the worker and the servers, the last first."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with suppress(OSError):  # the terminal may be gone
        print("stopping", flush=True)
    running = {name: service.process for name, service in services.items() if service.process}
    # The worker first, stopped and then killed: it must start nothing new, and would wait before it ends. The
    # flow runs tell their last states themselves, as long as the servers are there.
    if worker := running.pop("worker", None):
        with suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGSTOP)
    servers = {process.pid for process in running.values()}
    _end([process for process in _processes(settings) if _group(process) not in {*servers, worker and worker.pid}])
    if worker:
        with suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)
    for process in reversed(running.values()):
        stop(process)
    _end(_processes(settings))


def _processes(settings: Settings) -> list[psutil.Process]:
    """Everything that lives below a `dqn serve` of this home, flow runs of a dead worker included."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(MARK) == str(settings.home):
                found.append(process)
    return found


def _flow_run(process: psutil.Process) -> str:
    """The id of the flow run that it works at, if any."""
    with suppress(psutil.Error):
        return str(process.environ().get("PREFECT__FLOW_RUN_ID", ""))
    return ""


def _group(process: psutil.Process) -> int:
    with suppress(ProcessLookupError):
        return os.getpgid(process.pid)
    return 0


def _end(processes: list[psutil.Process]) -> None:
    """SIGTERM, which lets a flow run tell its state, and SIGKILL for what does not heed it."""
    for act in (psutil.Process.terminate, psutil.Process.kill):
        for process in processes:
            with suppress(psutil.Error):
                act(process)
        deadline = time.monotonic() + STOP_SECONDS
        while time.monotonic() < deadline and (processes := [process for process in processes if _lives(process)]):
            time.sleep(0.1)


def _lives(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False
