"""Every process below `make serve` is killed once, and one action of the user continues the training."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from operated import FIELDS, Operated, digest, metric_steps, newest, wait_for_run, wait_until

from flows.train import train
from storage.runs import open_run, open_tracking
from storage.units.unit import CHECKPOINT

CYCLES, FLOW_RUN_CYCLES = 60, 40

pytestmark = [pytest.mark.operate, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def operated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operated]:
    operated = Operated(tmp_path_factory.mktemp("operated"), DQN_FLOW_RUN_CYCLES=str(FLOW_RUN_CYCLES))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DQN_HOME", str(operated.settings.home))
        yield operated
    if operated.process.poll() is None:
        operated.stop()


def status(name: str) -> str:
    return str(open_tracking().find_run(name).info.status)


def test_queue_runs_two_trainings_and_resumes_a_cancelled_one(
    operated: Operated, prefect_server: str, shared_home: Path
) -> None:
    """Two trainings run at once and a third one waits. One is cancelled and then resumed; the results do not change."""
    one = operated.run("dqn/train", cycles=FLOW_RUN_CYCLES, name="one", overrides=FIELDS)
    cancelled = operated.run("dqn/train", cycles=10_000, name="cancelled", overrides=FIELDS)
    waiting = operated.run("dqn/train", cycles=10_000, name="waiting", overrides=FIELDS)
    one_run, run = wait_for_run("one", 1), wait_for_run("cancelled", 1)
    assert operated.state(waiting) == "SCHEDULED", "two at once"
    operated.answer("DELETE", f"/flow_runs/{waiting}")
    operated.prefect("flow-run", "cancel", cancelled)
    assert operated.final(cancelled) == "CANCELLED"
    assert status("cancelled") == "KILLED"
    operated.wait_for_line(cancelled, f"retry with: prefect flow-run retry {cancelled}")
    assert not operated.failures.exists(), "a cancellation is no failure"

    further = newest(run, CHECKPOINT) + 2
    resumed = operated.run("dqn/train", resume="cancelled", cycles=further)
    assert operated.final(one) == operated.final(resumed) == "COMPLETED"
    found = digest(one_run, FLOW_RUN_CYCLES), digest(run, further)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DQN_HOME", str(shared_home))
        undisturbed = open_run(train(cycles=max(FLOW_RUN_CYCLES, further), name="undisturbed", overrides=FIELDS))
        assert found == (digest(undisturbed, FLOW_RUN_CYCLES), digest(undisturbed, further))


def test_killed_flow_process_is_retried_with_equal_result(
    operated: Operated, prefect_server: str, shared_home: Path
) -> None:
    """The retried flow run gives the checkpoint and the metrics of an undisturbed run."""
    flow_run = operated.run("dqn/train", cycles=FLOW_RUN_CYCLES, name="killed", overrides=FIELDS)
    run = wait_for_run("killed", 2)
    process = operated.flow_process(flow_run)
    assert process is not None
    process.kill()
    assert operated.final(flow_run) == "CRASHED"
    assert newest(run, CHECKPOINT) < FLOW_RUN_CYCLES
    operated.wait_for_line(flow_run, f"retry with: prefect flow-run retry {flow_run}")
    wait_until(operated.failures.exists, "the command for failures")
    assert operated.failures.read_text() == f"{flow_run} Crashed\n"

    operated.wait_for_line(flow_run, "Check whether the flow run")  # the last line that the worker logs about it
    operated.prefect("flow-run", "retry", flow_run)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DQN_HOME", str(shared_home))
        undisturbed = open_run(train(cycles=FLOW_RUN_CYCLES, name="undisturbed", overrides=FIELDS))
        wanted, steps = digest(undisturbed, FLOW_RUN_CYCLES), metric_steps(undisturbed)
    assert operated.final(flow_run) == "COMPLETED"
    assert digest(run, FLOW_RUN_CYCLES) == wanted
    assert metric_steps(run) == steps, "each point is logged once"
    assert status("killed") == "FINISHED"


def test_killed_worker_leaves_a_flow_run_to_retry(operated: Operated) -> None:
    flow_run = operated.run("dqn/train", cycles=CYCLES, name="worker", overrides=FIELDS)
    run = wait_for_run("worker", 1)
    worker = operated.service("worker", "start")
    worker.kill()
    assert operated.final(flow_run) == "CRASHED"
    assert newest(run, CHECKPOINT) < FLOW_RUN_CYCLES
    wait_until(lambda: operated.flow_process(flow_run) is None, "the end of the flow process")
    operated.prefect("flow-run", "retry", flow_run)
    assert operated.final(flow_run) == "COMPLETED"
    wait_until(lambda: status("worker") == "FINISHED", "the next flow run of the training")
    assert newest(run, CHECKPOINT) == CYCLES
    trainings = operated.of_deployment(operated.deployment("dqn/train")["id"])
    assert {"train worker", f"train {run.run_id}"} <= {one["name"] for one in trainings}


def test_training_continues_while_prefect_restarts(operated: Operated) -> None:
    flow_run = operated.run("dqn/train", cycles=FLOW_RUN_CYCLES, name="server", overrides=FIELDS)
    run = wait_for_run("server", 1)
    server = operated.service("server", "start")
    server.kill()
    assert operated.final(flow_run) == "COMPLETED"
    assert newest(run, CHECKPOINT) == FLOW_RUN_CYCLES
    assert "Prefect exited with status -9; restarting it" in operated.output()


def test_killed_dqn_serve_leaves_flow_runs_to_retry(operated: Operated) -> None:
    flow_run = operated.run("dqn/train", cycles=FLOW_RUN_CYCLES, name="serve", overrides=FIELDS)
    run = wait_for_run("serve", 1)
    operated.kill()
    operated.start()
    assert operated.state(flow_run) == "CRASHED"
    assert newest(run, CHECKPOINT) < FLOW_RUN_CYCLES
    operated.prefect("flow-run", "retry", flow_run)
    assert operated.final(flow_run) == "COMPLETED"
    assert newest(run, CHECKPOINT) == FLOW_RUN_CYCLES


def test_evaluation_runs_beside_a_training(operated: Operated) -> None:
    training = operated.run("dqn/train", cycles=FLOW_RUN_CYCLES, name="beside", overrides=FIELDS)
    evaluation = operated.run("dqn-evaluate/nightly", run="serve", episodes=2, epsilon=1.0)
    assert operated.final(evaluation) == operated.final(training) == "COMPLETED"
    assert {run.info.status for run in open_tracking().runs()} == {"FINISHED"}


def test_sweep_starts_its_trainings_by_the_deployment(operated: Operated) -> None:
    """The process of the sweep is killed while a training runs; the retried sweep waits for that training."""
    grid = {"td_lambda": [0.5, 0.9]}
    definition = {"name": "swept", "base": {**FIELDS, "cycles": CYCLES}, "grid": grid, "parallel": 1}
    flow_run = operated.run("dqn-sweep/sweep", definition=definition)
    wait_for_run("swept-0-seed0", 1)
    process = operated.flow_process(flow_run)
    assert process
    process.kill()
    assert operated.final(flow_run) == "CRASHED"
    operated.wait_for_line(flow_run, "Check whether the flow run")  # the last line that the worker logs about it
    operated.prefect("flow-run", "retry", flow_run)
    assert operated.final(flow_run) == "COMPLETED"
    (found,) = open_tracking().sweeps("swept")
    names = ["swept-0-seed0", "swept-1-seed0"]
    assert [status(name) for name in names] == ["FINISHED", "FINISHED"]
    trainings = operated.of_deployment(operated.deployment("dqn/train")["id"])
    assert sorted(one["name"] for one in trainings if one["name"].startswith("train swept")) == [
        f"train {name}" for name in names
    ]  # each was started once
    assert {run.data.tags.get("mlflow.parentRunId") for run in map(open_tracking().find_run, names)} == {
        found.info.run_id
    }
    assert {run.info.status for run in open_tracking().runs()} == {"FINISHED"}


@pytest.mark.skipif(not shutil.which("chromium"), reason="chromium is not installed (Debian package chromium)")
def test_both_uis_show_a_training_in_a_browser(operated: Operated, tmp_path: Path) -> None:
    flow_run = operated.run("dqn/train", cycles=2, name="drawn", overrides=FIELDS)
    assert operated.final(flow_run) == "COMPLETED"
    found = open_tracking().find_run("drawn").info
    prefect, mlflow = operated.settings.prefect_address, operated.settings.mlflow_address
    pages = {
        f"{prefect}/runs/flow-run/{flow_run}": "train drawn",
        f"{mlflow}/#/experiments/{found.experiment_id}/runs/{found.run_id}": "Q-learning on ALE/Breakout-v5",
    }
    for number, (address, words) in enumerate(pages.items()):
        picture = tmp_path / f"{number}.png"
        options = ["--window-size=1300,1000", "--virtual-time-budget=20000", f"--user-data-dir={tmp_path / 'browser'}"]
        command = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom", *options]
        done = subprocess.run(
            [*command, f"--screenshot={picture}", address], capture_output=True, text=True, timeout=120
        )
        assert words in done.stdout, address
        assert picture.stat().st_size > 20_000, "the page is not empty"
