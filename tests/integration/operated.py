"""A real `dqn serve`, and the actions of its user: start, watch, cancel and retry flow runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
from ports import free_port

from storage.runs import StoredRun, open_run, open_tracking
from storage.settings import Settings
from storage.units.unit import CHECKPOINT, EXPERIENCE, UnitKind

FIELDS = {"lanes": 2, "replay_states": 256, "batch_size": 16, "threads": 1, "network": "nips", "keep_cycles": 10_000}
SECONDS = 240  # timeout of every wait, for a busy machine
FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
CHECKOUT = Path(__file__).resolve().parent.parent.parent


def wait_until(is_so: Callable[[], Any], what: str, every: float = 0.3) -> Any:
    """Call `is_so` every `every` seconds until its result is true, and return the result."""
    deadline = time.monotonic() + SECONDS
    while not (found := is_so()):
        assert time.monotonic() < deadline, f"{what}: not within {SECONDS} seconds"
        time.sleep(every)
    return found


def run_named(name: str) -> StoredRun:
    """The training run called `name`."""
    return open_run(open_tracking().find_run(name).info.run_id)


def newest(run: StoredRun, kind: UnitKind) -> int:
    """The newest cycle with a unit of `kind`; 0 if there is none."""
    return max(run.cycles(kind), default=0)


def wait_for_run(name: str, cycle: int) -> StoredRun:
    """Wait until the run is between play and optimization of a cycle after `cycle`, and return it."""
    wait_until(lambda: name in [run.info.run_name for run in open_tracking().runs()], f"run {name}")
    run, what = run_named(name), f"cycle {cycle} of {name}"
    wait_until(lambda: newest(run, EXPERIENCE) > newest(run, CHECKPOINT) >= cycle, what, every=0.01)
    return run


def digest(run: StoredRun, cycle: int) -> str:
    """The digest of the checkpoint of `cycle`."""
    return run.unit(CHECKPOINT, cycle).digest


def metric_steps(run: StoredRun) -> list[int]:
    """The steps at which MLflow has the loss."""
    return [point.step for point in run.tracking.history(run.run_id, "loss/mean")]


class Operated:
    """`dqn serve` in a process of its own, with a home of its own."""

    def __init__(self, home: Path, **environment: str) -> None:
        self.settings = Settings(
            home=home, tracking_uri=f"sqlite:///{home / 'mlflow.db'}", prefect_port=free_port(), mlflow_port=free_port()
        )
        self.failures = home / "failures"  # written by the failure command
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(CHECKOUT),
            "DQN_HOME": str(home),
            "DQN_PREFECT_PORT": str(self.settings.prefect_port),
            "DQN_MLFLOW_PORT": str(self.settings.mlflow_port),
            "DQN_ON_FAILURE": f'echo "$DQN_FLOW_RUN $DQN_STATE" >> {self.failures}',
            **environment,
        }
        self.start()

    def start(self) -> None:
        """Start `dqn serve` and wait until it is ready."""
        self.log_file = (self.settings.home / "output").open("w+")
        command = [sys.executable, "-m", "flows.cli", "serve"]
        self.process = subprocess.Popen(
            command, env=self.environment, stdout=self.log_file, stderr=self.log_file, cwd=self.settings.home
        )
        wait_until(lambda: "Ctrl-C" in self.output() or self.process.poll() is not None, "dqn serve")
        assert self.process.poll() is None, self.output()
        self._http = httpx.Client(base_url=f"{self.settings.prefect_address}/api", timeout=60)

    def output(self) -> str:
        """Everything that it has printed."""
        return Path(self.log_file.name).read_text()

    def stop(self) -> int:
        """Send SIGTERM and return the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self._end()

    def kill(self) -> None:
        """Kill only this process; its children run on for a time."""
        self.process.kill()
        self._end()

    def _end(self) -> int:
        self._http.close()
        self.log_file.close()
        return self.process.wait(90)

    def processes(self) -> list[psutil.Process]:
        """All processes below it."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("DQN_SERVED") == str(self.settings.home):
                    found.append(process)
        return found

    def flow_process(self, flow_run: str) -> psutil.Process | None:
        """The process of a flow run, if it is alive."""
        for process in self.processes():
            with suppress(psutil.Error):
                is_engine = "prefect.engine" in process.cmdline()
                if is_engine and process.environ().get("PREFECT__FLOW_RUN_ID") == flow_run:
                    return process
        return None

    def service(self, *words: str) -> psutil.Process:
        """The server or worker whose command line has these words."""
        for process in self.processes():
            with suppress(psutil.Error):
                if set(words) <= set(process.cmdline()):
                    return process
        raise AssertionError(f"no process {words}")

    def prefect(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the command `prefect` with these arguments."""
        environment = {**self.environment, "PREFECT_API_URL": f"{self.settings.prefect_address}/api"}
        command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False)
        assert done.returncode == 0, done.stderr + done.stdout
        return done

    def request(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        """Send a request to the Prefect server; repeat it while the server's database is busy."""
        deadline = time.monotonic() + SECONDS
        while (answer := self._http.request(method, path, json=body)).status_code == httpx.codes.SERVICE_UNAVAILABLE:
            assert time.monotonic() < deadline, f"{path}: {answer.text}"
            time.sleep(0.5)
        return answer

    def answer(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """The JSON of a successful response."""
        answer = self.request(method, path, body).raise_for_status()
        return answer.json() if answer.content else None

    def deployment(self, name: str) -> dict[str, Any]:
        """The deployment called `name`."""
        return dict(self.answer("GET", f"/deployments/name/{name}"))

    def ask(self, deployment: str, **parameters: Any) -> httpx.Response:
        """Request a flow run of a deployment; the response may be an error."""
        path = f"/deployments/{self.deployment(deployment)['id']}/create_flow_run"
        return self.request("POST", path, {"parameters": parameters, "state": {"type": "SCHEDULED"}})

    def run(self, deployment: str, **parameters: Any) -> str:
        """Start a flow run of a deployment and return its id."""
        return str(self.ask(deployment, **parameters).raise_for_status().json()["id"])

    def flow_run(self, flow_run: str) -> dict[str, Any]:
        """The flow run with this id."""
        return dict(self.answer("GET", f"/flow_runs/{flow_run}"))

    def state(self, flow_run: str) -> str:
        """The type of a flow run's state; empty while no server answers."""
        with suppress(httpx.TransportError):
            return str(self.flow_run(flow_run)["state_type"])
        return ""

    def final(self, flow_run: str) -> str:
        """Wait for the final state of a flow run and return its type."""
        return str(wait_until(lambda: (state := self.state(flow_run)) in FINAL and state, f"end of {flow_run}"))

    def of(self, what: str, flow_run: str) -> list[dict[str, Any]]:
        """The `logs`, `artifacts` or `task_runs` of a flow run."""
        return list(self.answer("POST", f"/{what}/filter", {what: {"flow_run_id": {"any_": [flow_run]}}}))

    def wait_for_line(self, flow_run: str, beginning: str) -> None:
        """Wait until the log of a flow run has a line with this beginning."""
        wait_until(lambda: any(line["message"].startswith(beginning) for line in self.of("logs", flow_run)), beginning)

    def of_deployment(self, deployment: str) -> list[dict[str, Any]]:
        """The flow runs of the deployment with this id."""
        return list(self.answer("POST", "/flow_runs/filter", {"flow_runs": {"deployment_id": {"any_": [deployment]}}}))
