"""Evaluate an agent: complete episodes with one of its checkpoints."""

from __future__ import annotations

from typing import Annotated, Any

from prefect import flow
from pydantic import Field

from flows.commands.agents import open_agent
from flows.commands.evaluation import evaluate_agent
from flows.parameters import Count, Game, Name, Seed


@flow(name="dqn-evaluate", flow_run_name="evaluate-{run}", validate_parameters=True)
def evaluate(
    run: Name,
    checkpoint: Annotated[str, Field(pattern=r"^(latest|best|\d+)$")] = "latest",
    episodes: Count | None = None,
    epsilon: Annotated[float, Field(ge=0, le=1)] | None = None,
    game: Game | None = None,
    seed: Seed = 0,
) -> dict[str, Any]:
    """Play complete episodes with a checkpoint and log the scores to the run in MLflow.

    Args:
        run: A run's id or name, latest, or a shared agent such as models:/Breakout@champion.
        checkpoint: latest, best, or the number of a cycle.
        episodes: Complete episodes to play; the run's evaluation_episodes unless told otherwise.
        epsilon: Probability of a random action; the run's evaluation_epsilon unless told otherwise.
        game: Another game with the same actions.
        seed: Seed of the games and the policy.
    """
    return evaluate_agent(open_agent(run, checkpoint), episodes, epsilon, game, seed)
