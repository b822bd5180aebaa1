from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from dqn.config import TrainConfig, make_config
from dqn.metrics import Metric
from storage.errors import StorageError
from storage.run_tags import FLOW_RUN, MARK, WRITER
from storage.settings import Settings
from storage.tracking import Tracking
from storage.units.unit import TARGETS, Unit


@pytest.fixture
def tracking(home: Path) -> Tracking:
    return Tracking(Settings.from_environment())


@pytest.fixture
def start(tracking: Tracking, small_config: TrainConfig) -> Callable[..., Run]:
    def start_run(name: str | None = None, config: TrainConfig = small_config, **tags: str) -> Run:
        return tracking.start_run(config, name, tags)

    return start_run


def unit_of(metrics: list[Metric], speed: dict[str, float] | None = None, created_ms: int = 1_700_000_000_000) -> Unit:
    made = {"created_ms": created_ms, "by": {}, "speed": speed or {}}
    return Unit(Path("nowhere"), TARGETS, 1, {}, {}, metrics, made)


def history(tracking: Tracking, run: Run) -> list[tuple[str, int, int, float]]:
    """Every point of every metric: name, step, time, value."""
    keys = tracking.get_run(run.info.run_id).data.metrics
    points = [point for key in keys for point in tracking.history(run.info.run_id, key)]
    return sorted((point.key, point.step, point.timestamp, point.value) for point in points)


# ---------------------------------------------------------------- a new run


def test_run_has_its_whole_config_as_params(tracking: Tracking, start: Callable[..., Run]) -> None:
    config = make_config("tutorial", {"lanes": 3, "seed": 2**62})
    params = tracking.get_run(start(config=config).info.run_id).data.params
    assert params == {name: str(value) for name, value in config.model_dump(mode="json").items()}
    assert params["epsilon"] == "1:0.1:1000000"
    assert make_config("fast", params) == config


def test_run_has_its_name_versions_and_tags(tracking: Tracking, start: Callable[..., Run]) -> None:
    run = tracking.get_run(start("my run", **{"dqn.preset": "tutorial"}).info.run_id)
    assert run.info.run_name == "my run"
    assert run.info.status == "RUNNING"
    assert run.data.tags["dqn.preset"] == "tutorial"
    assert run.data.tags[MARK] == "train"
    assert {"version.dqn", "version.python", "version.torch", "machine"} <= run.data.tags.keys()


def test_run_without_a_name_gets_one(tracking: Tracking, start: Callable[..., Run]) -> None:
    assert start().info.run_name


def test_runs_of_one_game_share_an_experiment(tracking: Tracking, start: Callable[..., Run], home: Path) -> None:
    games = ["ALE/Breakout-v5", "Breakout-v0", "ALE/Pong-v5"]
    runs = [start(config=make_config("fast", {"game": game})) for game in games]
    experiments = [tracking.client.get_experiment(run.info.experiment_id).name for run in runs]
    assert experiments == ["Breakout", "Breakout", "Pong"]
    locations = [tracking.artifacts_of(run) for run in runs]
    assert locations[0] == (home / "artifacts" / "Breakout" / runs[0].info.run_id / "artifacts").as_uri()
    assert len(set(locations)) == 3


@pytest.mark.parametrize("location", ["gs://bucket/run", "mlflow-artifacts:/0/x/artifacts"])
def test_unsupported_artifact_location_is_refused(tracking: Tracking, start: Callable[..., Run], location: str) -> None:
    run = start()
    run.info._artifact_uri = location
    with pytest.raises(StorageError, match=rf"{run.info.run_id} are at {location}; .*artifact location"):
        tracking.artifacts_of(run)


def test_artifact_location_may_be_a_plain_path(tracking: Tracking, start: Callable[..., Run]) -> None:
    run = start()
    run.info._artifact_uri = "/data/artifacts"
    assert tracking.artifacts_of(run) == "/data/artifacts"


# ---------------------------------------------------------------- publishing


# ---------------------------------------------------------------- the writer's tag


def test_late_writer_changes_nothing_of_the_run(tracking: Tracking, start: Callable[..., Run]) -> None:
    run_id = start().info.run_id
    following = Tracking(tracking.settings)
    changes: list[Callable[[Tracking], None]] = [
        lambda writer: writer.publish(run_id, unit_of([Metric("loss", 1, 0.5)])),
        lambda writer: writer.set_tags(run_id, {"dqn.target": "cycles=1"}),
        lambda writer: writer.set_status(run_id, "FAILED"),
        lambda writer: writer.log_datasets(run_id, []),
    ]
    with tracking.writing(run_id, "mine", "1: process 5 on a"), following.writing(run_id, "mine", "2: process 6 on b"):
        before = tracking.get_run(run_id).to_dictionary()
        for change in changes:
            with pytest.raises(StorageError, match="run mine is being trained by process 6 on b; "):
                change(tracking)
        assert tracking.get_run(run_id).to_dictionary() == before
        for change in changes:
            change(following)
    assert tracking.writer_number(run_id) == 2


def test_tag_that_an_earlier_writer_sets_late_is_replaced(tracking: Tracking, start: Callable[..., Run]) -> None:
    run_id = start().info.run_id
    with tracking.writing(run_id, "mine", "2: process 6 on b"):
        tracking.client.set_tag(run_id, WRITER, "1: process 5 on a")
        tracking.publish(run_id, unit_of([Metric("loss", 1, 0.5)]))
        assert tracking.get_run(run_id).data.tags[WRITER] == "2: process 6 on b"


ODD = [Metric("odd", 1, math.inf), Metric("odd", 2, -math.inf), Metric("odd", 3, 1e-320), Metric("odd", 4, -0.0)]


def test_publish_is_idempotent(tracking: Tracking, start: Callable[..., Run]) -> None:
    run = start()
    metrics = [Metric(f"score/{name}", 10 * step, step / 3) for name in ("a", "b") for step in range(40)] + ODD
    unit = unit_of(metrics, {"sweep": 1234.5})
    tracking.publish(run.info.run_id, unit)
    once = history(tracking, run)
    tracking.publish(run.info.run_id, unit)
    tracking.publish(run.info.run_id, unit)
    assert history(tracking, run) == once
    assert len(once) == len(metrics) + 1


def test_metrics_have_the_step_and_the_time_of_their_unit(tracking: Tracking, start: Callable[..., Run]) -> None:
    run = start()
    tracking.publish(run.info.run_id, unit_of([Metric("loss", 64, 0.5), Metric("loss", 128, 0.25)], created_ms=123_456))
    assert history(tracking, run) == [("loss", 64, 123_456, 0.5), ("loss", 128, 123_456, 0.25)]


def test_nan_is_published_once(tracking: Tracking, start: Callable[..., Run]) -> None:
    run = start()
    for _ in range(2):
        tracking.publish(run.info.run_id, unit_of([Metric("loss", 1, math.nan)]))
    (point,) = history(tracking, run)
    assert math.isnan(point[3])


@pytest.mark.parametrize("count", [1000, 1001])
def test_all_metrics_of_several_batches_are_published(
    tracking: Tracking, start: Callable[..., Run], count: int
) -> None:
    run = start()
    for _ in range(2):
        tracking.publish(run.info.run_id, unit_of([Metric("score", step, step) for step in range(count)]))
    assert [(step, value) for _, step, _, value in history(tracking, run)] == [(step, step) for step in range(count)]


def test_interrupted_publish_is_completed_by_the_next(
    tracking: Tracking, start: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, unit = start(), unit_of([Metric("score", step, step) for step in range(1500)])
    log, calls = tracking.client.log_batch, []

    def log_once(*args: Any, **kwargs: Any) -> None:
        calls.append(1)
        if len(calls) > 1:
            raise ConnectionError
        log(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(tracking.client, "log_batch", log_once)
        with pytest.raises(ConnectionError):
            tracking.publish(run.info.run_id, unit)
    assert len(history(tracking, run)) == 1000
    tracking.publish(run.info.run_id, unit)
    assert [step for _, step, _, _ in history(tracking, run)] == list(range(1500))


def test_metrics_of_several_units_are_published(tracking: Tracking, start: Callable[..., Run]) -> None:
    run = start()
    units = [unit_of([Metric("loss", cycle, cycle)], created_ms=1_000 + cycle) for cycle in range(3)]
    for unit in [*units, *units]:
        tracking.publish(run.info.run_id, unit)
    assert [step for _, step, _, _ in history(tracking, run)] == [0, 1, 2]


def test_speeds_are_published_at_the_last_step_of_the_unit(tracking: Tracking, start: Callable[..., Run]) -> None:
    run = start()
    tracking.publish(run.info.run_id, unit_of([Metric("a", 7, 1.0), Metric("a", 3, 1.0)], {"sweep": 9.5}))
    assert ("speed/sweep", 7, 1_700_000_000_000, 9.5) in history(tracking, run)


def test_unit_without_metrics_publishes_nothing(tracking: Tracking, start: Callable[..., Run]) -> None:
    run = start()
    tracking.publish(run.info.run_id, unit_of([]))
    tracking.publish(run.info.run_id, replace(unit_of([]), made={"created_ms": 1}))
    assert history(tracking, run) == []


# ---------------------------------------------------------------- finding runs


def test_find_run_names_the_store_if_there_are_no_runs(tracking: Tracking, home: Path) -> None:
    assert tracking.runs() == []
    for wanted in ("latest", "any"):
        with pytest.raises(ValueError, match=rf"no run '{wanted}': there are no runs yet in sqlite:.*mlflow\.db"):
            tracking.find_run(wanted)


def test_run_is_found_by_id_beginning_of_id_and_name(tracking: Tracking, start: Callable[..., Run]) -> None:
    runs = [start("first"), start("second"), start("third")]
    for run in runs:
        for wanted in (run.info.run_id, run.info.run_id[:6], run.info.run_id[:20], run.info.run_name):
            assert tracking.find_run(wanted).info.run_id == run.info.run_id


def test_latest_is_the_newest_run(tracking: Tracking, start: Callable[..., Run]) -> None:
    for name in ("first", "second", "third"):
        start(name)
        assert tracking.find_run("latest").info.run_name == name
    assert [run.info.run_name for run in tracking.runs()] == ["third", "second", "first"]


def test_run_is_not_found_by_a_short_beginning_of_its_id(tracking: Tracking, start: Callable[..., Run]) -> None:
    run = start("first")
    for wanted in (run.info.run_id[:5], "", run.info.run_id[1:], run.info.run_id + "0"):
        with pytest.raises(ValueError, match="no run"):
            tracking.find_run(wanted)


def test_find_run_names_near_matches(tracking: Tracking, start: Callable[..., Run]) -> None:
    start("breakout-baseline")
    start("pong")
    with pytest.raises(ValueError, match=r"no run 'breakuot-baseline'; did you mean breakout-baseline\?$"):
        tracking.find_run("breakuot-baseline")


def test_find_run_names_the_list_without_a_near_match(tracking: Tracking, start: Callable[..., Run]) -> None:
    start("pong")
    with pytest.raises(ValueError, match=r"no run 'zzzzzzzzzz'; `dqn runs` lists them"):
        tracking.find_run("zzzzzzzzzz")


def test_ambiguous_name_is_refused_with_the_ids(tracking: Tracking, start: Callable[..., Run]) -> None:
    ids = {start("twin").info.run_id for _ in range(2)}
    with pytest.raises(ValueError, match=r"2 runs are called 'twin'; give one of the ids: ") as raised:
        tracking.find_run("twin")
    assert all(run_id in str(raised.value) for run_id in ids)


def test_name_that_looks_like_an_id_is_found(tracking: Tracking, start: Callable[..., Run]) -> None:
    run = start("0123456789abcdef0123456789abcdef")
    assert tracking.find_run(run.info.run_name).info.run_id == run.info.run_id


def test_foreign_and_deleted_runs_are_not_listed(tracking: Tracking, start: Callable[..., Run]) -> None:
    ours, deleted = start("ours"), start("deleted")
    tracking.client.create_run(ours.info.experiment_id, run_name="evaluation", tags={MARK: "evaluate"})
    tracking.client.create_run("0", run_name="somebody else's")
    tracking.delete_run(deleted.info.run_id)
    assert [run.info.run_name for run in tracking.runs()] == ["ours"]
    with pytest.raises(ValueError, match="no run"):
        tracking.find_run("evaluation")


def test_runs_of_several_pages_are_found(
    tracking: Tracking, start: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [start().info.run_id for _ in range(5)]
    search = tracking.client.search_runs
    monkeypatch.setattr(tracking.client, "search_runs", lambda *args, **kwargs: search(*args, **kwargs, max_results=2))
    assert [run.info.run_id for run in tracking.runs()] == ids[::-1]


def test_run_is_found_by_any_of_its_flow_runs(tracking: Tracking, start: Callable[..., Run]) -> None:
    start("other", **{FLOW_RUN: "f-10"})
    run = start("ours", **{FLOW_RUN: "f-1 f-2"})
    for flow_run_id in ("f-1", "f-2"):
        found = tracking.run_of_flow(flow_run_id)
        assert found is not None and found.info.run_id == run.info.run_id
    assert tracking.run_of_flow("f-3") is None
    assert tracking.run_of_flow("f") is None


# ---------------------------------------------------------------- tags, status, the store


def test_tags_are_set_and_replaced(tracking: Tracking, start: Callable[..., Run]) -> None:
    run_id = start().info.run_id
    tracking.set_tags(run_id, {"dqn.target": "states=1", "dqn.resume": "x"})
    tracking.set_tags(run_id, {"dqn.target": "cycles=2"})
    tags = tracking.get_run(run_id).data.tags
    assert (tags["dqn.target"], tags["dqn.resume"], tags[MARK]) == ("cycles=2", "x", "train")


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED"])
def test_ended_run_can_run_again(tracking: Tracking, start: Callable[..., Run], status: str) -> None:
    run_id = start().info.run_id
    tracking.set_status(run_id, status)
    run = tracking.get_run(run_id)
    assert run.info.status == status and run.info.end_time
    tracking.set_status(run_id, "RUNNING")
    assert tracking.get_run(run_id).info.status == "RUNNING"


def test_another_process_reads_what_was_logged(tracking: Tracking, start: Callable[..., Run]) -> None:
    run = start("stored")
    tracking.publish(run.info.run_id, unit_of([Metric("loss", 1, 0.5)]))
    again = Tracking(tracking.settings)
    assert again.find_run("stored").data.metrics == {"loss": 0.5}
    assert isinstance(again.client, MlflowClient) and again.client is not tracking.client


def test_unknown_kind_of_store_is_reported_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"the MLflow store nonsense://x cannot be used: .") as raised:
        Tracking(Settings(home=tmp_path, tracking_uri="nonsense://x"))
    assert "\n" not in str(raised.value)


def test_invalid_database_is_reported_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"?" * 5000)
    with pytest.raises(StorageError, match=r"mlflow\.db cannot be used: .") as raised:
        Tracking(Settings(home=tmp_path, tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}"))
    assert "\n" not in str(raised.value)


def test_directory_in_place_of_the_database_is_reported(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").mkdir()
    with pytest.raises(StorageError, match=r"mlflow\.db cannot be used: unable to open"):
        Tracking(Settings(home=tmp_path, tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}"))


def test_unreachable_server_is_reported_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with pytest.raises(StorageError, match=r"http://127\.0\.0\.1:9 does not answer .*MLFLOW_TRACKING_URI"):
        Tracking(Settings(home=tmp_path, tracking_uri="http://127.0.0.1:9"))
