"""A real `dqn serve`, and what a person does there: start, watch, cancel and retry flow runs."""

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
from served import free_port

from storage.runs import StoredRun, open_run, open_tracking
from storage.settings import Settings
from storage.units.unit import CHECKPOINT, EXPERIENCE, UnitKind

FIELDS = {"lanes": 4, "replay_states": 256, "batch_size": 16, "threads": 1, "network": "nips", "keep_cycles": 10_000}
SECONDS = 240  # the longest that anything may take on a busy machine
FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
CHECKOUT = Path(__file__).resolve().parent.parent.parent


def wait_until(is_so: Callable[[], Any], what: str, every: float = 0.3) -> Any:
    """The first true answer to a question that is asked every so many seconds."""
    deadline = time.monotonic() + SECONDS
    while not (found := is_so()):
        assert time.monotonic() < deadline, f"{what}: not within {SECONDS} seconds"
        time.sleep(every)
    return found


def run_named(name: str) -> StoredRun:
    """The training run of that name."""
    return open_run(open_tracking().find_run(name).info.run_id)


def newest(run: StoredRun, kind: UnitKind) -> int:
    """The newest cycle of which the run has a unit of that kind."""
    return max(run.cycles(kind), default=0)


def wait_for_run(name: str, cycle: int) -> StoredRun:
    """The run of that name, in the middle of a cycle after that one: played, and not optimized yet."""
    wait_until(lambda: name in [run.info.run_name for run in open_tracking().runs()], f"run {name}")
    run, what = run_named(name), f"cycle {cycle} of {name}"
    wait_until(lambda: newest(run, EXPERIENCE) > newest(run, CHECKPOINT) >= cycle, what, every=0.01)
    return run


def digest(run: StoredRun, cycle: int) -> str:
    """That of the checkpoint after a cycle."""
    return run.unit(CHECKPOINT, cycle).digest


def metric_steps(run: StoredRun) -> list[int]:
    """The steps at which the loss is in MLflow."""
    return [point.step for point in run.tracking.history(run.run_id, "loss/mean")]


class Operated:
    """`dqn serve` in a process of its own, over a home of its own."""

    def __init__(self, home: Path, **environment: str) -> None:
        self.settings = Settings(
            home=home, tracking_uri=f"sqlite:///{home / 'mlflow.db'}", prefect_port=free_port(), mlflow_port=free_port()
        )
        self.told = home / "told"  # by the command for failures
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(CHECKOUT),
            "DQN_HOME": str(home),
            "DQN_PREFECT_PORT": str(self.settings.prefect_port),
            "DQN_MLFLOW_PORT": str(self.settings.mlflow_port),
            "DQN_ON_FAILURE": f'echo "$DQN_FLOW_RUN $DQN_STATE" >> {self.told}',
            **environment,
        }
        self.start()

    def start(self) -> None:
        """Start it, and wait until it says what to do next."""
        self.said = (self.settings.home / "said").open("w+")
        command = [sys.executable, "-m", "flows.cli", "serve"]
        self.process = subprocess.Popen(
            command, env=self.environment, stdout=self.said, stderr=self.said, cwd=self.settings.home
        )
        wait_until(lambda: "Ctrl-C" in self.output() or self.process.poll() is not None, "dqn serve")
        assert self.process.poll() is None, self.output()
        self._http = httpx.Client(base_url=f"{self.settings.prefect_address}/api", timeout=60)

    def output(self) -> str:
        """All that it has printed."""
        return Path(self.said.name).read_text()

    def stop(self) -> int:
        """SIGTERM to it; its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self._end()

    def kill(self) -> None:
        """SIGKILL to it alone: what it has started lives on, for a time."""
        self.process.kill()
        self._end()

    def _end(self) -> int:
        self._http.close()
        self.said.close()
        return self.process.wait(90)

    def processes(self) -> list[psutil.Process]:
        """All that it has started, and all that those have."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("DQN_SERVED") == str(self.settings.home):
                    found.append(process)
        return found

    def flow_process(self, flow_run: str) -> psutil.Process | None:
        """The process of a flow run, if it lives."""
        for process in self.processes():
            with suppress(psutil.Error):
                is_engine = "prefect.engine" in process.cmdline()
                if is_engine and process.environ().get("PREFECT__FLOW_RUN_ID") == flow_run:
                    return process
        return None

    def service(self, *words: str) -> psutil.Process:
        """The server or worker whose command has these words."""
        for process in self.processes():
            with suppress(psutil.Error):
                if set(words) <= set(process.cmdline()):
                    return process
        raise AssertionError(f"no process {words}")

    def prefect(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`prefect` with these arguments, as its user types it."""
        environment = {**self.environment, "PREFECT_API_URL": f"{self.settings.prefect_address}/api"}
        command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False)
        assert done.returncode == 0, done.stderr + done.stdout
        return done

    def asked(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        """What the Prefect server answers, once its database is not too busy to do so."""
        deadline = time.monotonic() + SECONDS
        while (answer := self._http.request(method, path, json=body)).status_code == httpx.codes.SERVICE_UNAVAILABLE:
            assert time.monotonic() < deadline, f"{path}: {answer.text}"
            time.sleep(0.5)
        return answer

    def answer(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """The contents of a good answer."""
        answer = self.asked(method, path, body).raise_for_status()
        return answer.json() if answer.content else None

    def deployment(self, name: str) -> dict[str, Any]:
        """A deployment as the server has it."""
        return dict(self.answer("GET", f"/deployments/name/{name}"))

    def ask(self, deployment: str, **parameters: Any) -> httpx.Response:
        """Ask for a flow run of a deployment."""
        path = f"/deployments/{self.deployment(deployment)['id']}/create_flow_run"
        return self.asked("POST", path, {"parameters": parameters, "state": {"type": "SCHEDULED"}})

    def run(self, deployment: str, **parameters: Any) -> str:
        """Start a flow run of a deployment; its id."""
        return str(self.ask(deployment, **parameters).raise_for_status().json()["id"])

    def flow_run(self, flow_run: str) -> dict[str, Any]:
        """A flow run as the server has it."""
        return dict(self.answer("GET", f"/flow_runs/{flow_run}"))

    def state(self, flow_run: str) -> str:
        """The type of a flow run's state; nothing while no server is there."""
        with suppress(httpx.TransportError):
            return str(self.flow_run(flow_run)["state_type"])
        return ""

    def final(self, flow_run: str) -> str:
        """The type of its last state, once it has one."""
        return str(wait_until(lambda: (state := self.state(flow_run)) in FINAL and state, f"end of {flow_run}"))

    def of(self, what: str, flow_run: str) -> list[dict[str, Any]]:
        """The `logs`, `artifacts` or `task_runs` of a flow run."""
        return list(self.answer("POST", f"/{what}/filter", {what: {"flow_run_id": {"any_": [flow_run]}}}))

    def wait_for_line(self, flow_run: str, beginning: str) -> None:
        """Until the log of a flow run has a line that begins so."""
        wait_until(lambda: any(line["message"].startswith(beginning) for line in self.of("logs", flow_run)), beginning)

    def of_deployment(self, deployment: str) -> list[dict[str, Any]]:
        """The flow runs of a deployment, by its id."""
        return list(self.answer("POST", "/flow_runs/filter", {"flow_runs": {"deployment_id": {"any_": [deployment]}}}))
