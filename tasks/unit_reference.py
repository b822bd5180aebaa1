"""What tasks hand to each other: small references to committed units, never data."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from prefect.runtime import flow_run, task_run

from dqn.metrics import speed_metric
from storage.runs import open_run
from storage.units.unit import Unit, UnitKind

logging.getLogger("prefect.task_runs").setLevel(logging.WARNING)  # not a line for each of thousands of tasks


@dataclass(frozen=True)
class UnitReference:
    """A committed unit, with its newest value of every metric."""

    kind: UnitKind
    cycle: int
    digest: str
    figures: dict[str, float]


def reference(unit: Unit) -> UnitReference:
    """The reference of a committed unit."""
    figures = {metric.name: metric.value for metric in unit.metrics}
    speed = {speed_metric(name): value for name, value in unit.speed.items()}
    return UnitReference(unit.kind, unit.cycle, unit.digest, {**figures, **speed})


def name_of_part(name: str) -> Callable[..., str]:
    """How Prefect is to call the runs of a task that a cycle has one of for each shard."""

    def named(parameters: dict[str, Any]) -> str:
        shard = f"-{parameters['shard']}" if open_run(parameters["run_id"]).shards > 1 else ""
        return f"{name}-{parameters['cycle']:05d}{shard}"

    return named


def made_by() -> dict[str, str]:
    """The Prefect runs that are at work, for the manifest."""
    ids = {"prefect_flow_run_id": flow_run.id, "prefect_task_run_id": task_run.id}
    return {name: str(value) for name, value in ids.items() if value}
