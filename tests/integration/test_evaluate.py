"""Evaluation of a real run, during training and afterwards."""

import json
from dataclasses import replace
from typing import Any

import pytest

from flows.commands.agents import open_agent
from flows.commands.evaluation import evaluate_agent
from storage.runs import StoredRun, open_run
from storage.selection import best_cycle, evaluations, find_checkpoint
from storage.units.unit import CHECKPOINT, EVALUATION

pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
def run(trained_run: str, home: object) -> StoredRun:
    return open_run(trained_run)


def test_training_evaluates_and_keeps_the_best_checkpoint(run: StoredRun) -> None:
    """The run is evaluated every `evaluation_states` states."""
    assert [unit.metrics[0].step for unit in evaluations(run)] == [1024, 512]
    history = run.tracking.history(run.run_id, "evaluation/mean")
    assert {point.step: point.value for point in history} == {
        unit.metrics[0].step: unit.metric("evaluation/mean") for unit in evaluations(run)
    }
    best = best_cycle(run)
    assert find_checkpoint(run, "best").cycle == best
    means = {unit.cycle: unit.metric("evaluation/mean") for unit in evaluations(run)}
    assert best in means and means[best] == max(means.values())
    assert set(run.cycles(CHECKPOINT)) == {best, 3, 4}, "keep_cycles is 2"


def test_evaluations_are_linked_to_a_model_of_their_checkpoint(run: StoredRun) -> None:
    """MLflow has one model for each evaluated checkpoint, with the params of the run and the scores."""
    found = run.tracking.get_run(run.run_id)
    models = run.tracking.client.search_logged_models(
        [found.info.experiment_id], f"source_run_id = '{run.run_id}'", order_by=[{"field_name": "name"}]
    )
    assert [model.name for model in models] == ["looked-at-00002", "looked-at-00004"]
    for model, unit in zip(models, reversed([*evaluations(run)]), strict=True):
        assert model.params == found.data.params and model.status == "READY"
        assert model.tags["dqn.checkpoint"] == unit.inputs["checkpoint"]
        scores = {metric.key: metric.value for metric in model.metrics}
        assert scores["evaluation/mean"] == unit.metric("evaluation/mean")
    run.tracking.forget_published(run.run_id)
    run.tracking.publish(run.run_id, next(iter(evaluations(run))))
    again = run.tracking.client.search_logged_models([found.info.experiment_id], f"source_run_id = '{run.run_id}'")
    assert len(again) == 2


def test_evaluation_repeats_exactly(run: StoredRun) -> None:
    committed = run.unit(EVALUATION, run.newest_checkpoint().cycle)
    agent = open_agent(run.name, str(committed.cycle))
    again = evaluate_agent(agent)
    assert run.unit(EVALUATION, committed.cycle).digest == committed.digest
    assert again["scores"] == json.loads((committed.directory / "evaluation.json").read_bytes())["scores"]
    assert again["states_per_second"] > 0


def test_another_protocol_has_its_own_metrics_and_artifacts(run: StoredRun) -> None:
    result = evaluate_agent(open_agent(run.name), episodes=2, epsilon=1.0, seed=7)
    found = run.tracking.get_run(run.run_id).data.metrics
    assert found["evaluation/Breakout-2x1-seed7/mean"] == result["mean"]
    own = run.tracking.history(run.run_id, "evaluation/mean")
    assert len(own) == 2, "the curve of the run's own protocol does not change"
    listed = set((run.artifacts / "figures").names())
    cycle = f"{run.newest_checkpoint().cycle:05d}.png"
    assert {f"evaluation-{cycle}", f"evaluation-Breakout-2x1-seed7-{cycle}"} <= listed


@pytest.mark.parametrize(
    ("which", "message"),
    [("99", "no checkpoint of cycle 99; run looked-at has the checkpoints"), ("first", "it must be latest, best or")],
)
def test_find_checkpoint_lists_the_existing_checkpoints(run: StoredRun, which: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_checkpoint(run, which)


def test_agent_trained_on_a_gpu_plays_on_the_cpu(run: StoredRun, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = run.checkpoint(run.newest_checkpoint())
    on_gpu = checkpoint.config.model_copy(update={"device": "cuda", "precision": "bfloat16"})
    from flows.commands.agents import load_learner

    learner: Any = load_learner(replace(checkpoint, metadata=replace(checkpoint.metadata, config=on_gpu)))
    assert (learner.config.device, learner.config.precision) == ("cpu", "float32")
