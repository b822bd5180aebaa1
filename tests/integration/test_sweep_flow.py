"""Sweeps: every trial is trained with every seed, once, whatever is killed."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

import flows.sweep
from dqn.metrics import EVALUATION_MEAN, SWEEP_OBJECTIVE
from flows.commands.verify import verify_run
from flows.evaluate import evaluate
from flows.parameters import config_from_file
from flows.sweep import sweep
from flows.sweeps.child_flows import FlowFailed, FlowKilled
from flows.sweeps.definition import check_sweep
from flows.sweeps.study import Study
from flows.train import HANDED_OVER, train_to_the_end
from storage.errors import StorageError
from storage.runs import open_tracking
from storage.sweeps import StoredSweep, mark_dead_sweeps
from storage.units.unit import CHECKPOINT

TRIALS = int(os.environ.get("CRASH_TRIALS", "1"))  # each is killed

pytestmark = pytest.mark.usefixtures("prefect_server")

Parts = dict[str, Any]


class InThisProcess:
    """Runs the flows of a sweep in this process, and fails when a test asks for it."""

    end_with_the_sweep = True
    calls: list[tuple[str, dict[str, Any]]]
    before: Callable[[str, Mapping[str, Any]], None]
    after: Callable[[str, Mapping[str, Any]], None]

    def __init__(self, flows: Mapping[str, Callable[..., Any]]) -> None:
        assert flows == {"train": train_to_the_end, "evaluate": evaluate}
        self._flows = flows

    def run(self, flow: str, parameters: Mapping[str, Any], key: str, follow: Any) -> None:
        type(self).calls.append((flow, dict(parameters)))
        type(self).before(flow, parameters)
        try:
            self._flows[flow](**parameters)
        except ValueError as error:
            raise FlowFailed(str(error)) from None
        type(self).after(flow, parameters)

    def stop(self) -> None:
        pass


def nothing(flow: str, parameters: Mapping[str, Any]) -> None:
    pass


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> type[InThisProcess]:
    class Children(InThisProcess):
        before, after = staticmethod(nothing), staticmethod(nothing)

    Children.calls = []
    monkeypatch.setattr(flows.sweep, "Processes", Children)
    return Children


@pytest.fixture
def without_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw no report at the end of a sweep, which takes seconds."""
    draw_no_report(monkeypatch)


def draw_no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flows.sweep, "log_report", lambda stored, study: "no report")


@pytest.fixture
def parts(small: dict[str, object], home: Path, request: pytest.FixtureRequest) -> Parts:
    base = {**small, "states": 64, "episode_frames_limit": 40, "threads": 1, "precision": "float32"}
    search = {"td_lambda": {"choices": [0.6, 0.8]}, "learning_rate.start": {"low": 1e-4, "high": 1e-3, "log": True}}
    return {
        "name": request.node.name.removeprefix("test_"),
        "base": base,
        "search": search,
        "trials": 2,
        "seeds": [0, 1],
    }


def stored(run_id: str) -> StoredSweep:
    return StoredSweep(run_id, str(open_tracking().get_run(run_id).info.run_name), open_tracking())


def ranking(run_id: str, parts: Parts) -> list[tuple[Any, ...]]:
    """What came out of a sweep, with the digest of every training."""
    found, wanted = stored(run_id), check_sweep(parts)
    study = Study(found.study, wanted)
    return [
        (
            trial.number,
            trial.params,
            trial.state.name,
            trial.value,
            [verify_run(run).digest if (run := found.training(trial.number, seed)) else None for seed in wanted.seeds],
        )
        for trial in study.trials
    ]


def test_sweep_trains_every_trial_with_every_seed_once(
    parts: Parts, children: type[InThisProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts |= {"trials": 1, "objective": EVALUATION_MEAN}
    parts["base"] |= {"evaluation_episodes": 2}
    run_id = str(sweep(parts))
    trainings = [parameters for flow, parameters in children.calls if flow == "train"]
    assert (len(trainings), len(children.calls)) == (2, 4), "each training is evaluated"
    assert {(each["name"], each["seed"]) for each in trainings} == {
        (f"{parts['name']}-0-seed{seed}", seed) for seed in (0, 1)
    }
    found = stored(run_id)
    best = Study(found.study, check_sweep(parts)).ranking()[0]
    for seed in (0, 1):
        run = found.training(0, seed)
        assert run
        in_mlflow = open_tracking().get_run(run.run_id)
        assert in_mlflow.data.tags["mlflow.parentRunId"] == run_id
        assert SWEEP_OBJECTIVE in in_mlflow.data.metrics
        assert verify_run(run).problems == []
    directory = Path(found.artifacts.removeprefix("file://"))
    assert {path.name for path in directory.iterdir()} == {"report", "sweep.json", "trials.csv", "best.yaml", "writer"}
    assert config_from_file(directory / "best.yaml")["td_lambda"] == best.params["td_lambda"]
    assert open_tracking().get_run(run_id).info.status == "FINISHED"
    before = ranking(run_id, parts)
    with monkeypatch.context() as patch:
        draw_no_report(patch)
        assert str(sweep(parts)) == run_id
    assert len(children.calls) == 4  # nothing is repeated
    assert ranking(run_id, parts) == before
    assert str(sweep({**parts, "trials": 2})) == run_id
    assert len(children.calls) == 8
    assert ranking(run_id, {**parts, "trials": 2})[:1] == before
    assert (directory / "report" / "report.html").stat().st_size > 50_000


@pytest.mark.usefixtures("without_report")
def test_stopped_sweep_goes_on_with_the_same_ranking(parts: Parts, children: type[InThisProcess]) -> None:
    """The sweep is stopped before each of its flow runs and after it, and is started again each time."""
    parts |= {"prune": {"after_states": 64, "keep": 0.5}, "trials": 2, "seeds": [0]}
    parts["base"] |= {"states": 128}
    undisturbed = ranking(str(sweep(parts)), parts)
    stops = 2 * len(children.calls)
    parts["name"] += "-stopped"
    phases = itertools.cycle(["before", "before again", "after"])

    def stop(when: str, flow: str, parameters: Mapping[str, Any]) -> None:
        if next(phases) == when:
            raise StorageError("the disk is full")

    children.before, children.after = (staticmethod(partial(stop, when)) for when in ("before", "after"))
    for _ in range(stops):
        with pytest.raises(StorageError):
            sweep(parts)
    assert ranking(str(sweep(parts)), parts) == undisturbed


@pytest.mark.usefixtures("without_report")
def test_failed_trial_is_recorded_and_the_sweep_goes_on(parts: Parts, children: type[InThisProcess]) -> None:
    parts |= {"grid": {"lane_groups": [9, 1, 2, 4]}, "seeds": [0]}
    parts["base"] |= {"lanes": 4}
    del parts["search"], parts["trials"]

    def fail(flow: str, parameters: Mapping[str, Any]) -> None:
        if parameters.get("overrides", {}).get("lane_groups") == 1:
            raise FlowFailed("the memory of the device is full; lower batch_size")
        if parameters.get("overrides", {}).get("lane_groups") == 2:
            raise FlowKilled("its process was killed")

    children.before = staticmethod(fail)
    run_id = str(sweep(parts))
    study = Study(stored(run_id).study, check_sweep(parts))
    assert [trial.user_attrs.get("reason") for trial in study.trials] == [
        "lane_groups is 9; it can be at most lanes, which is 4",
        "the memory of the device is full; lower batch_size",
        "its process was killed (3 times)",
        None,
    ]
    assert [trial.number for trial in study.ranking()] == [3]
    assert len(children.calls) == 1 + 3 + 1


@pytest.mark.usefixtures("without_report")
def test_pruned_trial_plays_no_further(parts: Parts, children: type[InThisProcess]) -> None:
    parts |= {"prune": {"after_states": [64], "keep": 0.5}, "trials": 3, "seeds": [3]}
    parts["base"] |= {"states": 128}
    run_id = str(sweep(parts))
    found = stored(run_id)
    study = Study(found.study, check_sweep(parts))
    for trial in study.trials:
        run = found.training(trial.number, 3)
        assert run
        played = run.metadata(run.newest_checkpoint()).counters.states
        last = max(trial.intermediate_values)
        assert played == (128 if trial.state.name == "COMPLETE" else last)
    assert study.trials[0].state.name == "COMPLETE"


@pytest.mark.usefixtures("without_report")
def test_stored_objective_of_zero_is_not_measured_again(
    parts: Parts, children: type[InThisProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The training may have gone on since, so that its objective is another one now."""
    parts |= {"prune": {"after_states": 64}, "trials": 1, "seeds": [0]}
    parts["base"] |= {"states": 128}
    measured: list[dict[str, int]] = []

    def objective(trials: Any, trial: Any, target: dict[str, int]) -> float:
        measured.append(target)
        if len(measured) == 2:
            raise StorageError("the disk is full")
        return 0.0

    monkeypatch.setattr(flows.sweep._Trials, "_objective", objective)
    with pytest.raises(StorageError):
        sweep(parts)
    sweep(parts)
    assert measured == [{"states": 64}, {"states": 128}, {"states": 128}]


@pytest.mark.usefixtures("without_report")
def test_training_that_hands_over_is_waited_for(parts: Parts, children: type[InThisProcess]) -> None:
    """Its next flow run dies, so it is started again."""
    parts |= {"trials": 1, "seeds": [0]}

    def hand_over(flow: str, parameters: Mapping[str, Any]) -> None:
        if len(children.calls) == 1:
            run_id = open_tracking().find_run(f"{parts['name']}-0-seed0").info.run_id
            open_tracking().set_status(run_id, HANDED_OVER)
            threading.Timer(1, open_tracking().set_status, (run_id, "KILLED")).start()

    children.after = staticmethod(hand_over)
    found = stored(str(sweep(parts)))
    assert len(children.calls) == 2
    assert [trial.state.name for trial in Study(found.study, check_sweep(parts)).trials] == ["COMPLETE"]


@pytest.mark.usefixtures("without_report")
def test_sweep_waits_for_a_training_that_a_worker_goes_on_with(
    parts: Parts, children: type[InThisProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training on the same machine would have ended with the sweep, so another process must have resumed it."""
    parts |= {"trials": 1, "seeds": [0]}
    monkeypatch.setattr(flows.sweep, "RELEASE_SECONDS", 0.5)
    children.after = staticmethod(stop_always)
    with pytest.raises(StorageError, match="the disk is full"):
        sweep(parts)
    children.after = staticmethod(nothing)
    run = stored(open_tracking().sweeps(parts["name"])[0].info.run_id).training(0, 0)
    assert run
    with run.writing(), pytest.raises(StorageError, match="is being trained by another process; stop it"):
        sweep(parts)
    children.end_with_the_sweep = False
    with ThreadPoolExecutor() as pool:
        with run.writing():
            swept = pool.submit(copy_context().run, sweep, parts)
            time.sleep(3)
            assert not swept.done()
        swept.result(60)
    assert len(children.calls) == 1


def stop_always(flow: str, parameters: Mapping[str, Any]) -> None:
    raise StorageError("the disk is full")


@pytest.mark.usefixtures("without_report")
def test_sweep_has_one_writer(parts: Parts, children: type[InThisProcess], home: Path) -> None:
    def start_again(flow: str, parameters: Mapping[str, Any]) -> None:
        children.before = staticmethod(nothing)
        code = (
            "import sys; from storage.sweeps import open_sweep\nwith open_sweep(sys.argv[1], 'ALE/Pong-v5', {}): pass"
        )
        done = subprocess.run([sys.executable, "-c", code, parts["name"]], capture_output=True, text=True)
        errors.append(done.stderr.strip().splitlines()[-1])

    errors: list[str] = []
    children.before = staticmethod(start_again)
    sweep({**parts, "trials": 1, "seeds": [0]})
    (error,) = errors
    assert f"sweep {parts['name']} is being trained by process {os.getpid()}" in error


@pytest.mark.usefixtures("without_report")
def test_killed_sweep_and_killed_trainings_change_nothing(
    parts: Parts,
    children: type[InThisProcess],
    home: Path,
    tmp_path: Path,
    prefect_home: Path,
    prefect_server: str,
    figure: Callable[[int, str, str], None],
) -> None:
    """Of every trial the training is killed, and then the sweep, which is started again.

    If there are several, the Prefect server is killed, too, which ends the sweep with one line.
    """
    parts |= {"trials": TRIALS, "seeds": [0]}
    parts["base"] |= {"states": 384}
    undisturbed = ranking(str(sweep(parts)), parts)
    parts["name"] = "killed"
    file = tmp_path / "sweep.yaml"
    file.write_text(json.dumps(parts))
    command = [sys.executable, "-m", "flows.cli", "sweep", str(file)]
    environment = {**os.environ, "DQN_HOME": str(home), "PREFECT_HOME": str(prefect_home)}
    if TRIALS == 1:  # otherwise the sweep has a Prefect server of its own, which is killed, too
        environment["PREFECT_API_URL"] = prefect_server
    environment["PREFECT_CLIENT_MAX_RETRIES"] = "1"  # otherwise the client retries each request for a minute

    def training_below(process: subprocess.Popen[str], trial: int, cycle: int) -> psutil.Process:
        """The process of a training, once it has done some cycles."""
        deadline = time.monotonic() + 200
        while time.monotonic() < deadline:
            assert process.poll() is None, process.communicate()
            found = open_tracking().sweeps("killed")
            run = found and stored(found[0].info.run_id).training(trial, 0)
            if run and run.is_held() and max(run.cycles(CHECKPOINT), default=0) >= cycle:
                return next(
                    each
                    for each in psutil.Process(process.pid).children(recursive=True)
                    if "spawn_main" in " ".join(each.cmdline())
                )
            time.sleep(0.2)
        raise AssertionError(f"trial {trial} did not reach cycle {cycle}")

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    for trial in range(TRIALS):
        process = start()
        training = training_below(process, trial, 1)
        training.kill()
        training.wait(20)
        training = training_below(process, trial, 3)
        process.kill()
        process.communicate()
        training.wait(20)
        assert mark_dead_sweeps() == ["killed"]
    if TRIALS > 1:
        process = start()
        training_below(process, TRIALS - 1, 4)
        below = psutil.Process(process.pid).children(recursive=True)
        next(each for each in below if "uvicorn" in each.cmdline()).kill()
        error = process.communicate(timeout=240)[1]
        assert process.returncode == 1, error
        (line,) = [line for line in error.splitlines() if line.startswith("dqn: ")]
        assert "does not answer" in line and line.endswith(f"go on with: dqn sweep {file}")
    run_id = str(sweep(parts))
    assert [found.info.run_id for found in open_tracking().sweeps("killed")] == [run_id]
    assert ranking(run_id, parts) == undisturbed
    test = f"a sweep of {TRIALS} trials: SIGKILL of each training, and then of the sweep; SIGKILL of its Prefect server"
    figure(14, test, f"the ranking, the objectives and the {TRIALS} digests of the undisturbed sweep")
