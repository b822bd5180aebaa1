"""The flow `dqn-evaluate`: play complete episodes with a checkpoint."""

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
        run: Id or name of a run, latest, or a registered agent such as models:/Breakout@champion.
        checkpoint: latest, best, or the number of a cycle.
        episodes: Number of complete episodes; by default the run's evaluation_episodes.
        epsilon: Probability of a random action; by default the run's evaluation_epsilon.
        game: Another game with the same actions.
        seed: Seed of the games and the policy.

    Returns:
        The protocol, the scores and their statistics; see `flows.commands.evaluation`.
    """
    return evaluate_agent(open_agent(run, checkpoint), episodes, epsilon, game, seed)
