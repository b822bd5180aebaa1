"""A Prefect server that is killed while a run trains, and is restarted or not."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from ports import free_port
from served import Server

from storage.runs import StoredRun, open_run, open_tracking
from storage.settings import Settings
from storage.units.unit import CHECKPOINT

CYCLES = 12  # enough that the training still runs when the server is back
FEWER_CYCLES = 6
FIELDS = {"lanes": 2, "replay_states": 256, "batch_size": 16, "threads": 1, "network": "nips", "keep_cycles": CYCLES}

pytestmark = pytest.mark.operate


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, prefect_database: Path) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("served")
    shutil.copy(prefect_database, home / "prefect.db")
    settings = Settings(home=home, tracking_uri=f"sqlite:///{home / 'mlflow.db'}", prefect_port=free_port())
    command = [sys.executable, "-m", "prefect", "server", "start"]
    command += ["--host", settings.host, "--port", str(settings.prefect_port)]
    database = f"sqlite+aiosqlite:///{home / 'prefect.db'}"
    server = Server(
        settings,
        command,
        f"{settings.prefect_address}/api/health",
        PREFECT_SERVER_DATABASE_CONNECTION_URL=database,
        PREFECT_API_URL=f"{settings.prefect_address}/api",
        PREFECT_CLIENT_MAX_RETRIES="1",  # otherwise the client retries each request for a minute
    )
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DQN_HOME", str(home))
        yield server
    server.stop()


def start_training(server: Server, name: str, cycles: int) -> subprocess.Popen[str]:
    settings = [part for field, value in FIELDS.items() for part in ("--set", f"{field}={value}")]
    command = [sys.executable, "-m", "flows.cli", "train", "--cycles", str(cycles), "--name", name, *settings]
    return subprocess.Popen(
        command, env=server.environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def checkpoints(server: Server) -> list[Path]:
    """The checkpoints of all runs; all cycles are kept."""
    return list(server.settings.home.glob("artifacts/*/*/artifacts/checkpoints/[0-9]*"))


def wait_for_cycle(server: Server, cycle: int, training: subprocess.Popen[str], others: int) -> None:
    """Wait until the run in training has the checkpoint of `cycle`; `others` counts the checkpoints of other runs."""

    def is_there() -> bool:
        return len(checkpoints(server)) >= others + cycle + 1

    while not is_there():
        assert training.poll() is None or is_there(), training.communicate()[1]
        time.sleep(0.02)


def of_prefect(server: Server, what: str) -> list[dict[str, Any]]:
    found = httpx.post(f"{server.settings.prefect_address}/api/{what}/filter", json={}, timeout=30)
    return list(found.raise_for_status().json())


def states(server: Server, what: str, prefix: str = "") -> Counter[str]:
    return Counter(one["state_type"] for one in of_prefect(server, what) if one["name"].startswith(prefix))


def run_named(name: str) -> StoredRun:
    return open_run(open_tracking().find_run(name).info.run_id)


def test_training_continues_while_its_prefect_server_restarts(server: Server) -> None:
    """The server is killed during training, and comes back two cycles later."""
    others = len(checkpoints(server))
    training = start_training(server, "back", CYCLES)
    wait_for_cycle(server, 2, training, others)
    server.kill()
    wait_for_cycle(server, 4, training, others)
    server.start()
    error = training.communicate(timeout=120)[1]
    assert training.returncode == 0, error
    assert states(server, "flow_runs", "train back") == {"COMPLETED": 1}
    deadline = time.monotonic() + 30  # for the server to record the events
    while (found := states(server, "task_runs")) != {"COMPLETED": 3 * CYCLES} and time.monotonic() < deadline:
        time.sleep(0.5)
    assert found == {"COMPLETED": 3 * CYCLES}, "each task is recorded once"
    assert_finished("back", CYCLES)


def test_training_ends_although_its_prefect_server_stays_away(server: Server) -> None:
    """Every cycle is trained and stored; then one line says that the server does not answer."""
    training = start_training(server, "undisturbed", FEWER_CYCLES)
    error = training.communicate(timeout=180)[1]
    assert training.returncode == 0, error
    others = len(checkpoints(server))
    training = start_training(server, "away", FEWER_CYCLES)
    wait_for_cycle(server, 2, training, others)
    server.kill()
    began = time.monotonic()
    error = training.communicate(timeout=180)[1]
    away = run_named("away")
    assert training.returncode == 1, error
    lines = [line for line in error.splitlines() if line.startswith("dqn: ")]
    assert lines == [
        f"dqn: the Prefect server {server.settings.prefect_address}/api does not answer; "
        f"every finished cycle is stored; resume with: dqn train --resume {away.run_id}"
    ], error
    assert all(line.startswith(("cycle ", "dqn: ")) for line in error.splitlines()), error
    assert time.monotonic() - began < 120
    assert_finished("away", FEWER_CYCLES)
    undisturbed = run_named("undisturbed").unit(CHECKPOINT, FEWER_CYCLES)
    assert away.newest_checkpoint().digest == undisturbed.digest


def test_training_does_not_start_without_its_prefect_server(server: Server) -> None:
    if server.process is not None and server.process.poll() is None:
        server.kill()
    training = start_training(server, "never", FEWER_CYCLES)
    assert "does not answer; start it, or unset PREFECT_API_URL" in training.communicate(timeout=60)[1]
    assert training.returncode == 1


def assert_finished(name: str, cycles: int) -> None:
    run = run_named(name)
    assert run.newest_checkpoint().cycle == cycles
    assert run.tracking.get_run(run.run_id).info.status == "FINISHED"
    assert len(run.tracking.history(run.run_id, "counter/cycles")) == cycles
