"""Inspect a cycle of a run: pictures from its stored experience, in one report that opens offline."""

from __future__ import annotations

from typing import Annotated

from prefect import flow
from pydantic import Field

from flows.commands.agents import find_run_and_cycle
from flows.commands.inspection import inspect_run
from flows.parameters import Name


@flow(name="dqn-inspect", flow_run_name="inspect-{run}", validate_parameters=True)
def inspect(
    run: Name,
    cycle: Annotated[int, Field(ge=0)] | None = None,
    state: Annotated[str, Field(pattern=r"^\d+:\d+$")] | None = None,
    channel: Annotated[int, Field(ge=0)] = 0,
) -> str:
    """Make pictures of a cycle from its stored experience, and a report of them, in MLflow.

    Args:
        run: A run's id or name, latest, or a shared agent such as models:/Breakout@champion.
        cycle: Number of the cycle; the newest with stored experience unless told otherwise.
        state: The state to show the network's convolutions at work on, as STEP:LANE.
        channel: Input channel whose weights are shown for the later convolutions.

    Returns:
        The path of the report.
    """
    found, its_cycle = find_run_and_cycle(run)
    return inspect_run(found, its_cycle if cycle is None else cycle, state, channel)
