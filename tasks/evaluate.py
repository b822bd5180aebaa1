"""Evaluate a checkpoint and commit the scores."""

from __future__ import annotations

from dataclasses import replace
from time import perf_counter

from prefect import task
from prefect.cache_policies import NO_CACHE

from dqn.checkpoint import Counters
from dqn.evaluation.evaluation import Evaluation, Protocol, evaluation_groups, play_episodes
from dqn.learning.learner import Learner
from storage.formats.evaluation import write_evaluation
from storage.runs import StoredRun, open_run
from storage.units.unit import EVALUATION, Unit
from tasks.process_cache import CACHE
from tasks.progress import report
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
    """Evaluate a checkpoint by any protocol; commit the scores with their histogram. Their metrics are not published.

    Args:
        run: the run that it is of; the scores are kept there.
        checkpoint: digest of its unit, which may be gone.
        counters: what the run had done then.
        learner: restored from it.
        protocol: the run's own is called `evaluation`, any other one with its name.
        threads: CPU threads to play with; the scores do not depend on it.
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

        # Before the commit, after which nobody would draw it again; and whole, or not at all.
        drawn = draft.directory.with_suffix(".png")
        score_histogram(evaluation).savefig(drawn)
        run.artifacts.put_file(f"figures/{kind}-{counters.cycle:05d}.png", drawn)
    return evaluation, draft.unit


def play_evaluation(learner: Learner, protocol: Protocol, threads: int, cycle: int = 0) -> tuple[Evaluation, float]:
    """Play the protocol's episodes; the evaluation and its states per second, from opening the games on."""
    began = perf_counter()
    evaluation = play_episodes(
        evaluation_groups(protocol, learner.config, threads),
        learner.estimate,
        protocol,
        threads,
        lambda done, episodes: report("evaluate", cycle, done, episodes),
    )
    return evaluation, sum(evaluation.steps) / (perf_counter() - began)
