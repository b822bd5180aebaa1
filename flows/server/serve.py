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
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING

import psutil

from flows.server.mlflow_server import mlflow_command, prepare_password, runs_page
from flows.server.processes import (
    answers,
    check_exposure,
    check_port,
    start_server,
    stop_server,
    wait_for_server,
)
from storage.environment import PREFECT_FLOW_RUN, SERVED_HOME, serve_environment
from storage.errors import StorageError
from storage.settings import Settings

if TYPE_CHECKING:
    from flows.server.reaper import Reaper

POOL, WORKER = "local", "dqn"
CHECKOUT = Path(__file__).resolve().parents[2]
MAX_RESTARTS_PER_HOUR = 5
STOP_SECONDS = 30
REAP_SECONDS = 60


@dataclass
class Service:
    """A server or the worker, with its process, which is restarted when it exits."""

    name: str
    command: list[str]
    environment: dict[str, str]
    log_file: IO[bytes]
    process: subprocess.Popen[bytes] | None = None
    start_times: list[float] = field(default_factory=list)

    def start(self) -> subprocess.Popen[bytes]:
        """Start the process.

        Raises:
            StorageError: the process exited more than `MAX_RESTARTS_PER_HOUR` times within an hour.
        """
        now = time.monotonic()
        self.start_times = [*(started for started in self.start_times if started > now - 3600), now]
        if len(self.start_times) > MAX_RESTARTS_PER_HOUR + 1:
            raise StorageError(
                f"{self.name} exited {MAX_RESTARTS_PER_HOUR + 1} times within an hour; see {self.log_file.name}"
            )
        self.process = start_server(self.command, self.environment, self.log_file)
        return self.process


def serve_until_interrupted() -> None:
    """Start the servers and the worker, register the deployments in prefect.yaml, and supervise until interrupted.

    Raises:
        ValueError: a setting cannot be used, such as a port that is in use.
        StorageError: another `dqn serve` has this home, or a server does not start.
    """
    settings = Settings.from_environment()
    check_exposure(settings)
    with _exclusive_lock(settings):
        _terminate(_served_processes(settings))  # processes that a killed `dqn serve` left behind
        check_port(settings.host, settings.prefect_port, "DQN_PREFECT_PORT")
        services = _services(settings)
        if "MLflow" in services:
            check_port(settings.host, settings.mlflow_port, "DQN_MLFLOW_PORT")
        try:
            _start(services, settings)
            _print_addresses(settings)
            _supervise(services, settings)
        except KeyboardInterrupt:
            pass
        finally:
            _shut_down(services, settings)


@contextmanager
def _exclusive_lock(settings: Settings) -> Iterator[None]:
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
    """The services in the order of their start; without MLflow if the user has a server of their own."""
    prefect = [sys.executable, "-m", "prefect"]
    address = ["--host", settings.host, "--port", str(settings.prefect_port)]
    commands = {"Prefect": [*prefect, "server", "start", *address]}
    if not settings.tracking_uri.startswith(("http://", "https://")):
        commands["MLflow"] = mlflow_command(settings)
    commands["worker"] = [*prefect, "worker", "start", "--pool", POOL, "--type", "process", "--name", WORKER]
    environment, logs = serve_environment(settings.home, settings.prefect_address), settings.home / "logs"
    logs.mkdir(exist_ok=True)
    services = {}
    for name, command in commands.items():
        log = logs / f"{name.lower()}.log"
        if log.exists():
            log.replace(log.with_suffix(".log.1"))
        own = prepare_password(settings) if name == "MLflow" else {}
        services[name] = Service(name, command, environment | own, log.open("wb+"))
    return services


def _start(services: dict[str, Service], settings: Settings) -> None:
    """Start the servers at the same time, then the worker, then register the deployments."""
    print(f"starting {', '.join(services)}; their logs are in {settings.home / 'logs'}", flush=True)
    health = {"Prefect": f"{settings.prefect_address}/api/health", "MLflow": f"{settings.mlflow_address}/health"}
    servers = {name: services[name].start() for name in health if name in services}
    for name, server in servers.items():
        wait_for_server(partial(answers, health[name]), name, server, services[name].log_file)
    worker = services["worker"]
    # Prefect is imported after this line, so that its client reads these settings.
    os.environ.update({name: value for name, value in worker.environment.items() if name.startswith("PREFECT_")})
    from flows.server import work_pool

    started_at = datetime.now(UTC)
    work_pool.prepare(POOL, settings)
    _print_lines(_reaper(settings).reap(without_worker=True))
    process = worker.start()
    _deploy(worker.environment)
    wait_for_server(lambda: work_pool.has_worker(POOL, WORKER, started_at), "the worker", process, worker.log_file)


def _deploy(environment: dict[str, str]) -> None:
    """Register the deployments in prefect.yaml."""
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    done = subprocess.run(
        command, cwd=CHECKOUT, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise StorageError(
            f"Prefect refused the deployments in prefect.yaml: {lines[-1] if lines else 'no reason given'}"
        )


def _print_addresses(settings: Settings) -> None:
    activate = Path(sys.prefix) / "bin" / "activate"  # an image has none
    lines = [
        f"Prefect UI: {settings.prefect_address}",
        f"MLflow UI:  {runs_page(settings.mlflow_address)}",
        "in another terminal:",
        *([f"  source {activate}"] if activate.exists() else []),
        f"  export PREFECT_API_URL={settings.prefect_address}/api",
        "  prefect deployment run dqn/train -p preset=fast -p states=200000 --watch",
        "Ctrl-C stops everything; continue a stopped training with: prefect flow-run retry ID",
    ]
    print("\n".join(lines), flush=True)


def _supervise(services: dict[str, Service], settings: Settings) -> None:
    """Restart services that exit, and mark flow runs and training runs that were killed, until interrupted."""
    reaper, last_reap = _reaper(settings), time.monotonic()
    while True:
        for service in services.values():
            if service.process and service.process.poll() is not None:
                print(f"{service.name} exited with status {service.process.returncode}; restarting it", flush=True)
                if service is services["worker"]:
                    # Without their worker, flow runs can no longer be cancelled.
                    _terminate([process for process in _served_processes(settings) if _flow_run_id(process)])
                    _print_lines(reaper.reap(without_worker=True))
                service.start()
        if time.monotonic() - last_reap > REAP_SECONDS:
            _print_lines(reaper.reap())
            last_reap = time.monotonic()
        time.sleep(1)


def _reaper(settings: Settings) -> Reaper:
    from flows.server.reaper import Reaper

    return Reaper(WORKER, lambda: {_flow_run_id(process) for process in _served_processes(settings)})


def _print_lines(lines: list[str]) -> None:
    for line in lines:
        print(line, flush=True)


def _shut_down(services: dict[str, Service], settings: Settings) -> None:
    """Terminate the flow runs, which can be retried later, then the worker, then the servers in reverse order."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with suppress(OSError):  # the terminal may be closed
        print("stopping", flush=True)
    running = {name: service.process for name, service in services.items() if service.process}
    # The worker is stopped first, so that it starts no flow run, and killed later, because it waits before it exits.
    # The servers stay up until the flow runs have sent their final states.
    if worker := running.pop("worker", None):
        with suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGSTOP)
    servers = {process.pid for process in running.values()}
    _terminate(
        [
            process
            for process in _served_processes(settings)
            if _process_group(process) not in {*servers, worker and worker.pid}
        ]
    )
    if worker:
        with suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)
    for process in reversed(running.values()):
        stop_server(process)
    _terminate(_served_processes(settings))


def _served_processes(settings: Settings) -> list[psutil.Process]:
    """All processes below a `dqn serve` of this home, including flow runs whose worker was killed."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(SERVED_HOME) == str(settings.home):
                found.append(process)
    return found


def _flow_run_id(process: psutil.Process) -> str:
    """The id of the flow run that the process executes, or an empty string."""
    with suppress(psutil.Error):
        return str(process.environ().get(PREFECT_FLOW_RUN, ""))
    return ""


def _process_group(process: psutil.Process) -> int:
    with suppress(ProcessLookupError):
        return os.getpgid(process.pid)
    return 0


def _terminate(processes: list[psutil.Process]) -> None:
    """Send SIGTERM, on which a flow run sends its state, and SIGKILL to what is alive after `STOP_SECONDS`."""
    for send in (psutil.Process.terminate, psutil.Process.kill):
        for process in processes:
            with suppress(psutil.Error):
                send(process)
        deadline = time.monotonic() + STOP_SECONDS
        while time.monotonic() < deadline and (processes := [process for process in processes if _is_alive(process)]):
            time.sleep(0.1)


def _is_alive(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False
