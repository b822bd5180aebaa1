"""Speed of an evaluation, compared with play by the same network: `python -m benchmarks.evaluation RUN`.

`make bench` measures an untrained network at epsilon 1, which needs no run and has short episodes.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.report import Row
from benchmarks.speed import STEPS, Rates, take_turns
from dqn.config import make_config
from dqn.envs.experience import Experience
from dqn.envs.games import action_names
from dqn.envs.histories import first_histories
from dqn.envs.lanes import open_lanes
from dqn.envs.policy import CyclePolicy
from dqn.envs.rollout import play_cycle
from dqn.evaluation.evaluation import Protocol
from dqn.hardware import prepare, resolve
from dqn.learning.learner import Learner
from dqn.schedules import LinearSchedule
from flows.commands.agents import open_agent
from tasks.play_evaluation import play_evaluation

EPISODES, TURNS = 30, 3


def bench_evaluation(learner: Learner, protocol: Protocol) -> Rates:
    """States per second of an evaluation, including the opening of its games, and of play as in a training."""
    cores = len(os.sched_getaffinity(0))
    config = resolve(learner.config.model_copy(update={"threads": cores, "lane_groups": 0}))
    prepare(config)
    groups = open_lanes(config, first_histories(config.lanes))
    actions = len(action_names(config.game, config.full_action_set))
    experience = Experience.empty(STEPS, config.lanes, actions, channels=config.state_channels)
    epsilon = LinearSchedule(start=protocol.epsilon, end=protocol.epsilon)
    policy = CyclePolicy(epsilon, 0, config.lanes, [np.random.default_rng(group) for group in range(len(groups))])

    def evaluate() -> int:
        evaluation, _ = play_evaluation(learner, protocol, cores)
        return sum(evaluation.steps)

    def collect() -> int:
        play_cycle(groups, learner.estimate, experience, policy)
        return experience.actions.size

    try:
        return take_turns({"evaluation": evaluate, "play": collect}, TURNS)
    finally:
        for lanes in groups:
            lanes.close()


def row(rates: Rates, network: str) -> Row:
    """The row of the table of results."""
    return Row(
        f"evaluation of {EPISODES} episodes, {network}",
        f"{rates['evaluation']:,.0f} states/s",
        f"{rates['evaluation'] / rates['play']:.0%} of play of the same network ({rates['play']:,.0f})",
        "both cores",
    )


def measure(results: dict[str, Any]) -> None:
    """Measure an untrained network, and store the rates in `results`."""
    config = resolve(make_config())
    learner = Learner(config, len(action_names(config.game)), prepare(config))
    results["evaluation"] = bench_evaluation(learner, Protocol(config.game, EPISODES, 1.0))


def rows(results: dict[str, Any]) -> Iterator[Row]:
    """The row of the rates in `results`."""
    yield row(results["evaluation"], "untrained, epsilon 1")


def main() -> None:
    """Measure the latest checkpoint of the run that the argument names."""
    agent = open_agent(sys.argv[1])
    print(row(bench_evaluation(agent.learner, agent.protocol(EPISODES)), f"run {agent.name}"))


if __name__ == "__main__":
    main()
