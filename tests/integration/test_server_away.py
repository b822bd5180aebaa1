"""An MLflow server that goes away while a run trains, and comes back or not."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import flows.train
from flows.servers import answers, mlflow_command, server_environment, start, stop, wait_until
from flows.train import train
from storage.errors import StorageError
from storage.runs import StoredRun, open_run
from storage.settings import Settings

CONFIG = {"lanes": 4, "replay_states": 64, "batch_size": 16, "threads": 2}

pytestmark = pytest.mark.usefixtures("prefect_server")


class Server:
    """An MLflow server in a process of its own."""

    def __init__(self, home: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.settings = Settings(home, f"sqlite:///{home / 'mlflow.db'}", mlflow_port=port)
        self._log = (home / "server.log").open("w+b")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = start(mlflow_command(self.settings), server_environment(self.settings), self._log)
        address = f"{self.settings.mlflow_address}/health"
        wait_until(lambda: answers(address), "MLflow", self.process, self._log)

    def stop(self) -> None:
        assert self.process is not None
        stop(self.process)
        self._log.close()

    def kill(self) -> None:
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("served"))
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DQN_HOME", str(server.settings.home))
        patch.setenv("MLFLOW_TRACKING_URI", server.settings.mlflow_address)
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # for the monitor of the machine's load, which only waits
        yield server
    server.stop()


@pytest.fixture(scope="module")
def undisturbed(server: Server, prefect_server: None) -> StoredRun:
    return open_run(train(cycles=4, name="undisturbed", overrides=CONFIG))


@pytest.fixture
def before_sweep(monkeypatch: pytest.MonkeyPatch) -> dict[int, Callable[[], None]]:
    """What happens in which cycle, between play and sweep."""
    happens: dict[int, Callable[[], None]] = {}
    sweep = flows.train.update_q_values

    def watched(run_id: str, cycle: int) -> Any:
        if cycle in happens:
            happens.pop(cycle)()
        return sweep(run_id, cycle)

    monkeypatch.setattr(flows.train, "update_q_values", watched)
    return happens


def metrics(run: StoredRun) -> dict[str, list[tuple[int, float]]]:
    """Every point of every metric but those of time."""
    client = run.tracking.client
    names = [name for name in client.get_run(run.run_id).data.metrics if not name.startswith(("speed/", "system/"))]
    histories = {name: client.get_metric_history(run.run_id, name) for name in names}
    return {name: sorted((point.step, point.value) for point in points) for name, points in histories.items()}


def test_work_goes_on_and_metrics_arrive_once_when_the_server_is_back(
    server: Server, undisturbed: StoredRun, before_sweep: dict[int, Callable[[], None]]
) -> None:
    before_sweep |= {2: server.kill, 4: server.start}
    run = open_run(train(cycles=4, name="back", overrides=CONFIG))
    assert not before_sweep
    assert run.newest_checkpoint().digest == undisturbed.newest_checkpoint().digest
    assert metrics(run) == metrics(undisturbed)
    assert run.tracking.client.get_run(run.run_id).info.status == "FINISHED"
    assert not list(server.settings.unpublished(run.run_id).iterdir())


def test_a_server_that_stays_away_is_told_in_one_line_and_the_run_goes_on_later(
    server: Server, undisturbed: StoredRun, before_sweep: dict[int, Callable[[], None]]
) -> None:
    before_sweep[2] = server.kill
    with pytest.raises(StorageError, match=r"^the MLflow server http://.* does not answer .*MLFLOW_TRACKING_URI$"):
        train(cycles=3, name="late", overrides=CONFIG)
    server.start()
    run = open_run(train(resume="late", cycles=4))
    assert run.newest_checkpoint().digest == undisturbed.newest_checkpoint().digest
    assert metrics(run) == metrics(undisturbed)
    assert run.tracking.client.get_run(run.run_id).info.status == "FINISHED"
