"""Play an evaluation without Prefect and storage, as the commands do for an exported agent."""

from __future__ import annotations

from time import perf_counter

from dqn.evaluation.evaluation import Evaluation, Protocol, evaluation_groups, play_episodes
from dqn.learning.learner import Learner
from tasks.progress import report


def play_evaluation(learner: Learner, protocol: Protocol, threads: int, cycle: int = 0) -> tuple[Evaluation, float]:
    """Play the protocol's episodes; returns the evaluation and its states per second, opening of games included."""
    began = perf_counter()
    evaluation = play_episodes(
        evaluation_groups(protocol, learner.config, threads),
        learner.estimate,
        protocol,
        threads,
        lambda done, episodes: report("evaluate", cycle, done, episodes),
    )
    return evaluation, sum(evaluation.steps) / (perf_counter() - began)
