"""An MLflow server that is killed while a run trains, and is restarted or not."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ports import free_port
from served import Server

from flows.runners import LocalRunner
from flows.server.mlflow_server import mlflow_command
from flows.train import train
from storage.errors import StorageError
from storage.runs import StoredRun, open_run
from storage.settings import Settings
from tasks.update_q_values import update_q_values

CONFIG = {"network": "small", "lanes": 2, "replay_states": 64, "batch_size": 16, "threads": 2}

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, mlflow_database: Path) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("served")
    shutil.copy(mlflow_database, home / "mlflow.db")
    settings = Settings(home=home, tracking_uri=f"sqlite:///{home / 'mlflow.db'}", mlflow_port=free_port())
    server = Server(settings, mlflow_command(settings), f"{settings.mlflow_address}/health")
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DQN_HOME", str(server.settings.home))
        patch.setenv("MLFLOW_TRACKING_URI", server.settings.mlflow_address)
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # for MLflow's monitor of the machine's load
        yield server
    server.stop()


@pytest.fixture(scope="module")
def undisturbed(server: Server, prefect_server: str) -> StoredRun:
    return open_run(train(cycles=4, name="undisturbed", overrides=CONFIG))


@pytest.fixture
def before_sweep(monkeypatch: pytest.MonkeyPatch) -> dict[int, Callable[[], None]]:
    """Actions by cycle; each runs between play and sweep."""
    actions: dict[int, Callable[[], None]] = {}
    start = LocalRunner.start

    def watched(self: LocalRunner, task: Any, *arguments: Any) -> Any:
        if task is update_q_values and (experience := arguments[1][0]).cycle in actions:
            actions.pop(experience.cycle)()
        return start(self, task, *arguments)

    monkeypatch.setattr(LocalRunner, "start", watched)
    return actions


def metrics(run: StoredRun) -> dict[str, list[tuple[int, float]]]:
    """Every point of every metric that does not depend on time."""
    logged = run.tracking.get_run(run.run_id).data.metrics
    histories = {
        name: run.tracking.history(run.run_id, name) for name in logged if not name.startswith(("speed/", "system/"))
    }
    return {name: sorted((point.step, point.value) for point in points) for name, points in histories.items()}


@pytest.mark.operate
def test_metrics_are_logged_once_after_mlflow_restarts(
    server: Server, undisturbed: StoredRun, before_sweep: dict[int, Callable[[], None]]
) -> None:
    before_sweep |= {2: server.kill, 4: server.start}
    run = open_run(train(cycles=4, name="back", overrides=CONFIG))
    assert not before_sweep
    assert run.newest_checkpoint().digest == undisturbed.newest_checkpoint().digest
    assert metrics(run) == metrics(undisturbed)
    assert run.tracking.get_run(run.run_id).info.status == "FINISHED"
    assert not list(server.settings.unpublished(run.run_id).iterdir())


def test_training_fails_in_one_line_while_mlflow_is_down(
    server: Server, undisturbed: StoredRun, before_sweep: dict[int, Callable[[], None]]
) -> None:
    """It can be resumed when the server is back, with the result of an undisturbed run."""
    before_sweep[2] = server.kill
    with pytest.raises(StorageError, match=r"^the MLflow server http://.* does not answer .*MLFLOW_TRACKING_URI$"):
        train(cycles=3, name="late", overrides=CONFIG)
    server.start()
    run = open_run(train(resume="late", cycles=4))
    assert run.newest_checkpoint().digest == undisturbed.newest_checkpoint().digest
    assert metrics(run) == metrics(undisturbed)
    assert run.tracking.get_run(run.run_id).info.status == "FINISHED"
