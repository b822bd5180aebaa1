"""The flow `dqn-inspect`: a report with pictures of a cycle of a run."""

from __future__ import annotations

from typing import Annotated

from prefect import flow
from pydantic import Field

from flows.commands.inspection import inspect_by_name
from flows.parameters import Name


@flow(name="dqn-inspect", flow_run_name="inspect-{run}", validate_parameters=True)
def inspect(
    run: Name,
    cycle: Annotated[int, Field(ge=0)] | None = None,
    state: Annotated[str, Field(pattern=r"^\d+:\d+$")] | None = None,
    channel: Annotated[int, Field(ge=0)] = 0,
) -> str:
    """Make a report with pictures of a cycle's play, sweep and network, and log it to the run in MLflow.

    Args:
        run: Id or name of a run, latest, or a registered agent such as models:/Breakout@champion.
        cycle: Number of the cycle; by default the newest with stored experience.
        state: State for the outputs of the convolutions, as STEP:LANE; by default that with the highest Q-value.
        channel: Input channel of the weights that are shown for the second and later convolutions.

    Returns:
        The URL of the report.
    """
    return inspect_by_name(run, cycle, state, channel)
