"""Flow runs below `make serve`: start them, watch them, and stop everything.

All tests of the module share one `dqn serve`, because it takes long to start; the last test stops it.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from operated import FIELDS, Operated, digest, metric_steps, run_named, wait_until

from flows.train import train
from storage.runs import open_run

CYCLES = 3

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def operated(
    tmp_path_factory: pytest.TempPathFactory, prefect_database: Path, mlflow_database: Path
) -> Iterator[Operated]:
    home = tmp_path_factory.mktemp("operated")
    shutil.copy(prefect_database, home / "prefect.db")
    shutil.copy(mlflow_database, home / "mlflow.db")
    operated = Operated(home, PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS="5")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DQN_HOME", str(operated.settings.home))
        yield operated
    if operated.process.poll() is None:
        operated.stop()


@pytest.mark.parametrize(
    ("deployment", "parameters", "message"),
    [
        ("dqn/train", {"states": -5}, "less than the minimum of 1"),
        ("dqn/train", {"preset": "quick"}, "not one of ['fast', 'tutorial']"),
        ("dqn/train", {"game": "ALE/Brekout-v5"}, "field 'game'"),
        ("dqn/train", {"seed": "seven"}, "field 'seed'"),
        ("dqn/train", {"overrides": {"lanes": 0}}, "'overrides.lanes'"),
        ("dqn/train", {"overrides": {"lerning_rate": 1}}, "'lerning_rate' was unexpected"),
        ("dqn-evaluate/evaluate", {"run": "latest", "epsilon": 2}, "greater than the maximum of 1"),
        ("dqn-inspect/inspect", {"run": "latest", "cycle": -1}, "less than the minimum of 0"),
        ("dqn-inspect/inspect", {}, "'run' is a required property"),
    ],
)
def test_server_refuses_invalid_parameters(
    operated: Operated, deployment: str, parameters: dict[str, Any], message: str
) -> None:
    answer = operated.ask(deployment, **parameters)
    assert answer.status_code == 409
    assert message in answer.text
    assert len(answer.text) < 300


def test_deployments_describe_every_parameter(operated: Operated) -> None:
    for name in (
        "dqn/train",
        "dqn-sweep/sweep",
        "dqn-evaluate/evaluate",
        "dqn-evaluate/nightly",
        "dqn-inspect/inspect",
    ):
        schema = operated.deployment(name)["parameter_openapi_schema"]
        assert schema["properties"]
        for parameter, field in schema["properties"].items():
            assert len(field.get("description", "")) > 15, f"{name} {parameter}"


def test_second_serve_of_a_home_is_refused(operated: Operated) -> None:
    command = [sys.executable, "-m", "flows.cli", "serve"]
    second = subprocess.run(command, env=operated.environment, capture_output=True, text=True, check=False)
    assert second.returncode == 1
    assert second.stderr.count("\n") == 1
    assert f"already serving: Prefect at {operated.settings.prefect_address}" in second.stderr
    assert f"by process {operated.process.pid} since" in second.stderr


def test_nightly_evaluation_is_scheduled_when_activated(operated: Operated) -> None:
    nightly = operated.deployment("dqn-evaluate/nightly")
    (schedule,) = nightly["schedules"]
    assert not schedule["active"]
    assert nightly["parameters"] == {"run": "latest"}
    turn = f"/deployments/{nightly['id']}/schedules/{schedule['id']}"
    operated.answer("PATCH", turn, {"active": True})
    runs = wait_until(lambda: operated.of_deployment(nightly["id"]), "a scheduled evaluation")
    assert all("T03:00:00" in run["expected_start_time"] for run in runs)
    assert {run["state_type"] for run in runs} == {"SCHEDULED"}
    operated.answer("PATCH", turn, {"active": False})


def test_flow_run_of_the_deployment_trains_as_the_command(
    operated: Operated, prefect_server: str, shared_home: Path
) -> None:
    flow_run = operated.run("dqn/train", cycles=CYCLES, name="deployed", overrides=FIELDS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DQN_HOME", str(shared_home))
        directly = open_run(train(cycles=CYCLES, name="directly", overrides=FIELDS))
        wanted, steps = digest(directly, CYCLES), metric_steps(directly)
    assert operated.final(flow_run) == "COMPLETED"
    run = run_named("deployed")
    assert digest(run, CYCLES) == wanted
    assert metric_steps(run) == steps
    assert run.tracking.get_run(run.run_id).info.status == "FINISHED"
    assert not operated.failures.exists()


def test_mlflow_and_prefect_link_the_training(operated: Operated) -> None:
    run = run_named("deployed")
    found = run.tracking.get_run(run.run_id)
    flow_run = found.data.tags["prefect.flow_run_id"]
    assert found.data.tags["prefect.flow_run"].endswith(flow_run)
    assert f"dqn train --resume {run.run_id}" in found.data.tags["mlflow.note.content"]
    experiment = run.tracking.client.get_experiment(found.info.experiment_id)
    assert experiment.name == "Breakout"
    assert {linked.dataset.name for linked in found.inputs.dataset_inputs} == {
        f"{kind} of cycle {CYCLES}" for kind in ("experience", "targets")
    }
    assert operated.flow_run(flow_run)["name"] == "train deployed"
    kinds = {artifact["key"].split("-")[0] for artifact in operated.of("artifacts", flow_run)}
    assert kinds == {"mlflow", "progress", "cycles", "summary"}
    tasks = {task["name"] for task in operated.of("task_runs", flow_run)}
    assert {f"collect-episodes-{CYCLES:05d}", f"update-q-values-{CYCLES:05d}", f"optimize-{CYCLES:05d}"} <= tasks


def test_serve_leaves_no_process_after_sigterm(operated: Operated) -> None:
    started = operated.processes()
    assert len(started) >= 3
    assert operated.stop() == 0
    assert "Traceback" not in operated.output()
    gone, left = psutil.wait_procs(started, timeout=10)
    assert not left, f"of {len(gone)} these are left"
    assert operated.processes() == []
