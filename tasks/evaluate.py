"""Evaluate a checkpoint and commit the scores."""

from __future__ import annotations

from time import perf_counter

from prefect import task
from prefect.cache_policies import NO_CACHE

from dqn.checkpoint import Counters
from dqn.evaluation.evaluation import Evaluation, Protocol, evaluation_groups, play_episodes
from dqn.learning.learner import Learner
from storage.formats.evaluation import write_evaluation
from storage.runs import StoredRun, open_run
from storage.units.unit import CHECKPOINT, EVALUATION, Unit, UnitKind
from tasks.process_cache import keep_learner, take_learner, unit_at_hand
from tasks.progress import report
from tasks.unit_reference import UnitReference, made_by, reference


@task(name="evaluate", task_run_name="evaluate-{cycle:05d}", cache_policy=NO_CACHE)
def evaluate(run_id: str, cycle: int) -> UnitReference:
    """Evaluate the checkpoint of cycle `cycle` by the run's own protocol, and commit the scores."""
    run = open_run(run_id)
    start = unit_at_hand(run, CHECKPOINT, cycle)
    if unit := run.made(EVALUATION, cycle, {"checkpoint": start.digest}):
        return reference(unit)
    checkpoint, learner = take_learner(run, start)
    config, counters = checkpoint.config, checkpoint.metadata.counters
    _, unit = evaluate_checkpoint(run, start.digest, counters, learner, Protocol.of(config), config.threads)
    keep_learner(start, checkpoint, learner)
    return reference(unit)


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
    kind = EVALUATION if own else UnitKind(EVALUATION.name, protocol=str(protocol))
    name = str(EVALUATION) if own else f"{EVALUATION}/{protocol}"
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
