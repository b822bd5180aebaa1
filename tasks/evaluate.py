"""Evaluate a checkpoint and commit the scores."""

from __future__ import annotations

from dataclasses import replace

from prefect import task
from prefect.cache_policies import NO_CACHE

from dqn.checkpoint import Counters
from dqn.evaluation.evaluation import Evaluation, Protocol
from dqn.learning.learner import Learner
from storage.formats.evaluation import write_evaluation
from storage.runs import StoredRun, open_run
from storage.units.unit import EVALUATION, Unit
from tasks.play_evaluation import play_evaluation
from tasks.process_cache import CACHE
from tasks.unit_reference import UnitReference, made_by


@task(name="evaluate", task_run_name="evaluate-{checkpoint.cycle:05d}", cache_policy=NO_CACHE)
def evaluate(run_id: str, checkpoint: UnitReference) -> UnitReference:
    """Evaluate `checkpoint` by the run's own protocol, and commit the scores."""
    run = open_run(run_id)
    if unit := run.made(EVALUATION, checkpoint.cycle, {"checkpoint": checkpoint.digest}):
        return UnitReference.of(unit)
    start = checkpoint.open(run)
    described, learner = CACHE.pop_learner(run, start)
    config, counters = described.config, described.metadata.counters
    _, unit = evaluate_checkpoint(run, start.digest, counters, learner, Protocol.of(config), config.threads)
    CACHE.put_learner(start, described, learner)
    return UnitReference.of(unit)


def evaluate_checkpoint(
    run: StoredRun, checkpoint: str, counters: Counters, learner: Learner, protocol: Protocol, threads: int
) -> tuple[Evaluation, Unit]:
    """Evaluate a checkpoint by any protocol; commit the scores with their histogram. Metrics are not published.

    Args:
        run: run of the checkpoint; it stores the scores.
        checkpoint: digest of the checkpoint's unit, which may have been pruned.
        counters: of the checkpoint.
        learner: restored from the checkpoint.
        protocol: the run's own protocol gives the unit `evaluation`, any other protocol a unit with its name.
        threads: CPU threads that play; the scores do not depend on it.
    """
    own = protocol == Protocol.of(learner.config)
    kind = EVALUATION if own else replace(EVALUATION, protocol=str(protocol))
    name = "evaluation" if own else f"evaluation/{protocol}"
    with run.commit(kind, counters.cycle, {"checkpoint": checkpoint}, made_by()) as draft:
        evaluation, states_per_second = play_evaluation(learner, protocol, threads, counters.cycle)
        draft.speed[name] = states_per_second
        draft.metrics += evaluation.metrics(name, counters.states)
        write_evaluation(draft.directory, evaluation)
        from dqn.plots.figures import score_histogram

        # Before the commit, because a task that finds its unit committed draws nothing.
        drawn = draft.directory.with_suffix(".png")
        score_histogram(evaluation).savefig(drawn)
        run.artifacts.put_file(f"figures/{kind}-{counters.cycle:05d}.png", drawn)
    return evaluation, draft.unit
