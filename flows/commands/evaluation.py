"""Evaluate an agent: play complete episodes with one of its checkpoints."""

from __future__ import annotations

import os
from typing import Any

from flows.commands.agents import Agent
from tasks.play_evaluation import play_evaluation


def evaluate_agent(
    agent: Agent,
    episodes: int | None = None,
    epsilon: float | None = None,
    game: str | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Play complete episodes with `agent`, commit the scores and log them in MLflow.

    What is not given is taken from the run's own protocol. The scores of a directory's agent are only returned.

    Returns:
        The run, the cycle, the protocol, every score, statistics of the scores, and the states played per second.

    Raises:
        ValueError: an argument is out of range, or `game` has other actions than the run's game.
    """
    protocol = agent.protocol(episodes, epsilon, game, seed)
    cores, counters = len(os.sched_getaffinity(0)), agent.metadata.counters
    if agent.run:
        from storage.publication import publish
        from tasks.evaluate import evaluate_checkpoint  # imports Prefect

        evaluation, unit = evaluate_checkpoint(
            agent.run, agent.checkpoint_digest, counters, agent.learner, protocol, cores
        )
        publish(agent.run, unit)
        speed = next(iter(unit.made["speed"].values()))
    else:
        evaluation, speed = play_evaluation(agent.learner, protocol, cores, counters.cycle)
    return {
        "run": agent.run.run_id if agent.run else None,
        "name": agent.name,
        "cycle": agent.metadata.counters.cycle,
        "states": agent.metadata.counters.states,
        **evaluation.as_dict(),
        "states_per_second": speed,
    }


def evaluation_text(result: dict[str, Any]) -> str:
    """Format the result of `evaluate_agent` for the terminal."""
    human = result.get("human_normalized")
    return (
        f"{result['episodes']} episodes of {result['name']} (cycle {result['cycle']}, {result['states']:,} states) "
        f"on {result['game']} at epsilon {result['epsilon']:g}\n"
        f"mean score {result['mean']:.2f} (95 % interval {result['mean_low']:.2f} to {result['mean_high']:.2f}), "
        f"median {result['median']:g}, sd {result['sd']:.2f}, min {result['min']:g}, max {result['max']:g}, "
        f"{result['cut_off']} cut off by the time limit\n"
        + ("" if human is None else f"human-normalized {human:.3f} (0 is a random player, 1 a human tester)\n")
        + f"{result['states_per_second']:,.0f} states/s\n"
        f"scores: {' '.join(f'{score:g}' for score in result['scores'])}"
    )
