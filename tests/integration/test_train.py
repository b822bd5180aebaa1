"""The whole pipeline on a real game, with Prefect's embedded server."""

import time
from concurrent.futures import CancelledError
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from prefect.client.orchestration import get_client

import tasks.collect_episodes
import tasks.optimize
from flows.runners import LocalRunner
from flows.train import train
from storage.runs import StoredRun, open_run, open_tracking
from storage.units.unit import CHECKPOINT, EXPERIENCE, TARGETS

pytestmark = pytest.mark.usefixtures("home", "prefect_server")

DATA = ("weights.safetensors", "optimizer.safetensors", "lanes.safetensors", "checkpoint.json")


def trained(**parameters: Any) -> StoredRun:
    return open_run(train(**parameters))


def checkpoint_bytes(run: StoredRun, cycle: int) -> dict[str, bytes]:
    directory = run.store(CHECKPOINT).directory / f"{cycle:05d}"
    return {name: (directory / name).read_bytes() for name in DATA}


def history(run: StoredRun, name: str) -> list[tuple[int, float]]:
    points = run.tracking.history(run.run_id, name)
    return sorted((point.step, point.value) for point in points)


def test_resumed_run_equals_an_uninterrupted_one(small: dict[str, object]) -> None:
    """Two cycles and a third one after a resume give the bytes of three cycles in one flow run."""
    small["network"] = "residual"  # the default
    small["keep_cycles"] = 3
    parts = trained(cycles=2, seed=3, name="parts", overrides=small)
    assert parts.newest_checkpoint().cycle == 2
    trained(resume="parts", cycles=3)
    whole = trained(cycles=3, seed=3, name="whole", overrides=small)

    assert parts.run_id != whole.run_id
    assert checkpoint_bytes(parts, 3) == checkpoint_bytes(whole, 3)
    assert parts.newest_checkpoint().digest == whole.newest_checkpoint().digest
    assert history(parts, "loss/mean") == history(whole, "loss/mean")
    assert [step for step, _ in history(parts, "loss/mean")] == [64, 128, 192]

    other = trained(cycles=1, seed=4, name="other", overrides=small)
    assert checkpoint_bytes(other, 1) != checkpoint_bytes(whole, 1)


def test_training_is_visible_in_zarr_mlflow_and_prefect(small: dict[str, object]) -> None:
    run = trained(cycles=3, name="shown", overrides={**small, "keep_cycles": 2})

    group = zarr.open_group(run.unit(EXPERIENCE, 3).directory / "experience.zarr", mode="r")
    assert group["states"].shape == (32, 2, 105, 80, 2)
    assert group["states"][...].max() > 0
    assert group["q_values"].shape == (32, 2, 4)
    assert np.ptp(group["q_values"][...]) > 0
    assert run.cycles(EXPERIENCE) == [3, 2], "only keep_cycles are kept"

    with pytest.raises(ValueError, match="cycles is 2, but run shown has done 3 cycles; ask for more, or leave it out"):
        train(resume="shown", cycles=2)
    found = run.tracking.get_run(run.run_id)
    assert found.data.tags["dqn.target"] == "cycles=3"
    assert found.info.status == "FINISHED"
    assert found.data.params["epsilon"] == "1:0.1:1000"
    assert found.data.params["sweep"] == "peng"
    assert found.data.params["precision"] in ("float32", "bfloat16"), "auto is decided when the run starts"
    assert {"machine", "version.torch", "prefect.flow_run_id", "dqn.target"} <= set(found.data.tags)
    wanted = {"schedule/epsilon", "schedule/learning_rate", "schedule/loss_limit", "schedule/max_epochs"}
    wanted |= {"schedule/replay_fraction", "share/life_lost", "share/episode_ended", "share/rewarded"}
    wanted |= {f"q_values/{when}_{of}" for when in ("before", "after", "change") for of in ("min", "mean", "max", "sd")}
    wanted |= {"estimation_error/high_share", "loss/mean", "optimization/epochs", "counter/states"}
    wanted |= {f"speed/{task}" for task in ("collect-episodes", "update-q-values", "optimize")}
    assert wanted <= set(found.data.metrics)
    assert history(run, "schedule/epsilon") == [(64, 1.0), (128, 1 - 0.9 * 0.064), (192, 1 - 0.9 * 0.128)]

    with get_client(sync_client=True) as client:
        names = {task.name for task in client.read_task_runs()}
    assert {"collect-episodes-00003", "update-q-values-00003", "optimize-00003"} <= names


def test_committed_experience_is_not_played_again(small: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    import flows.train

    whole = trained(cycles=2, name="undisturbed", overrides=small)
    run = trained(cycles=1, name="interrupted", overrides=small)

    def fail(*arguments: object) -> None:
        raise RuntimeError("killed before optimizing")

    with monkeypatch.context() as patch:
        patch.setattr(flows.train, "optimize", fail)
        with pytest.raises(RuntimeError, match="killed before"):
            train(resume="interrupted", cycles=2)
    assert run.tracking.get_run(run.run_id).info.status == "FAILED"
    played = run.unit(EXPERIENCE, 2)
    swept = run.unit(TARGETS, 2)

    train(resume="interrupted", cycles=2)
    assert run.unit(EXPERIENCE, 2).made == played.made
    assert run.unit(TARGETS, 2).made == swept.made
    assert run.newest_checkpoint().digest == whole.newest_checkpoint().digest
    assert history(run, "q_values/after_mean") == history(whole, "q_values/after_mean")


def test_target_within_a_cycle_can_be_given_again(small: dict[str, object]) -> None:
    """A run ends with a whole cycle, beyond its target. A retried flow run has the same target."""
    run = trained(states=100, name="beyond", overrides=small)
    assert run.newest_checkpoint().cycle == 2, "128 states"
    assert train(resume="beyond", states=100) == run.run_id
    assert run.tracking.get_run(run.run_id).info.status == "FINISHED"
    with pytest.raises(ValueError, match="states is 120, but run beyond has done 128 states"):
        train(resume="beyond", states=120)


def test_play_ahead_stops_when_the_training_fails(small: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    """The play would go on for a minute after the optimization has failed."""
    import flows.train

    playing, cut_short, collect = Event(), Event(), tasks.collect_episodes.collect

    def collect_forever(before: Any, actor: Any, lanes: Any, shard: int, on_step: Any) -> Any:
        if before.metadata.counters.cycle == 0:
            return collect(before, actor, lanes, shard, on_step)
        playing.set()
        try:
            for step in range(1_200):
                on_step(step, 1_200)
                time.sleep(0.05)
        except CancelledError:
            cut_short.set()
            raise
        raise AssertionError("the play was not stopped")

    def fail(*arguments: object) -> None:
        assert playing.wait(60)
        raise RuntimeError("the optimization failed")

    monkeypatch.setattr(tasks.collect_episodes, "collect", collect_forever)
    monkeypatch.setattr(flows.train, "optimize", fail)
    with pytest.raises(RuntimeError, match="the optimization failed"):
        train(cycles=3, name="stopped", overrides={**small, "overlap": "yes"})
    assert cut_short.is_set()
    run = open_run(open_tracking().find_run("stopped").info.run_id)
    assert run.cycles(EXPERIENCE) == [1] and not run.is_held()


def test_sweep_does_not_wait_for_the_play_of_the_next_cycle(
    small: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A collector runs its tasks in the order in which they are started."""
    started, start = [], LocalRunner.start

    def watched(self: LocalRunner, task: Any, *arguments: Any) -> Any:
        started.append(task.name)
        return start(self, task, *arguments)

    monkeypatch.setattr(LocalRunner, "start", watched)
    train(cycles=3, name="in-order", overrides={**small, "overlap": "yes"})
    assert started == ["update-q-values", "collect-episodes"] * 2 + ["update-q-values"]


def test_full_memory_ends_the_training_in_one_line(small: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    def train_on(*arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(tasks.optimize, "train_on", train_on)
    state: Any = train(cycles=1, name="full", overrides=small, return_state=True)
    assert state.is_failed()
    advice = "start a run with a batch_size below 16, or with a smaller network"
    assert state.message == f"the memory of the device is full (2.00 GiB more are needed); {advice}"


def test_tutorial_preset_runs_on_its_own_game(home: Path) -> None:
    small = {"lanes": 2, "replay_states": 640, "batch_size": 32, "max_epochs": 1}
    run = trained(preset="tutorial", cycles=1, name="tutorial", overrides=small)
    checkpoint = run.checkpoint(run.newest_checkpoint())
    assert checkpoint.config.game == "Breakout-v0"
    assert checkpoint.metadata.counters.states == 64
    assert sum(weights.numel() for weights in checkpoint.weights.values()) > 38e6


def test_retried_flow_run_continues_its_own_run(small: dict[str, object]) -> None:
    from prefect import flow

    import flows.train

    tries = []

    @flow(name="dqn", retries=1)
    def retried() -> str:
        tries.append(1)
        if len(tries) == 1:
            flows.train.train.fn(cycles=1, name="retried", overrides=small)
            raise RuntimeError("the process died here")
        return flows.train.train.fn(cycles=2, name="retried", overrides=small)

    run_id = retried()
    assert len([run for run in open_tracking().runs() if run.info.run_name == "retried"]) == 1
    assert open_run(run_id).newest_checkpoint().cycle == 2
