"""What tasks hand to each other: small references to committed units, never data."""

from __future__ import annotations

from dataclasses import dataclass

from prefect.runtime import flow_run, task_run

from storage.units import Unit


@dataclass(frozen=True)
class UnitReference:
    """A committed unit, with its newest value of every metric."""

    kind: str
    cycle: int
    digest: str
    figures: dict[str, float]


def reference(unit: Unit) -> UnitReference:
    """The reference of a committed unit."""
    figures = {metric.name: metric.value for metric in unit.metrics}
    speed = {f"speed/{name}": value for name, value in unit.speed.items()}
    return UnitReference(unit.kind, unit.cycle, unit.digest, {**figures, **speed})


def made_by() -> dict[str, str]:
    """The Prefect runs that are at work, for the manifest."""
    ids = {"prefect_flow_run_id": flow_run.id, "prefect_task_run_id": task_run.id}
    return {name: str(value) for name, value in ids.items() if value}
