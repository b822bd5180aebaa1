"""What tasks hand to each other: small references to committed units, never data."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from prefect.runtime import flow_run, task_run

from dqn.metrics import speed_metric
from storage.errors import StorageError
from storage.runs import StoredRun, open_run
from storage.units.unit import CHECKPOINT, Unit, UnitKind
from tasks.process_cache import CACHE

logging.getLogger("prefect.task_runs").setLevel(logging.WARNING)  # not a line for each of thousands of tasks


class UnitReference:
    """A committed unit, with its newest value of every metric.

    It is no dataclass. Of a dataclass Prefect records the address of each field too, and draws an edge to any task that
    gets another object which is later stored there.
    """

    def __init__(self, kind: UnitKind, cycle: int, digest: str, metrics: dict[str, float]) -> None:
        self.kind = kind
        self.cycle = cycle
        self.digest = digest
        self.metrics = metrics

    def __eq__(self, other: object) -> bool:
        return isinstance(other, UnitReference) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash(self.digest)

    @classmethod
    def of(cls, unit: Unit) -> UnitReference:
        """The reference of a committed unit."""
        metrics = {metric.name: metric.value for metric in unit.metrics}
        speed = {speed_metric(name): value for name, value in unit.speed.items()}
        return cls(unit.kind, unit.cycle, unit.digest, {**metrics, **speed})

    @property
    def next_cycle(self) -> int:
        """The cycle of the task that makes the next unit from this one: after a checkpoint a new cycle begins."""
        return self.cycle + 1 if self.kind == CHECKPOINT else self.cycle

    def open(self, run: StoredRun, *, read: bool = False) -> Unit:
        """The unit, verified. Files whose content this process has cached are not read again, unless `read` is set.

        Raises:
            StorageError: there is no such unit, it is corrupt, or another one was committed in its place.
        """
        known = self.digest if CACHE.knows(self.digest) and not read else ""
        unit = run.unit(self.kind, self.cycle, known=known)
        if unit.digest != self.digest:
            raise StorageError(f"{self.kind} of cycle {self.cycle} of run {run.run_id} was replaced; resume the run")
        return unit


def task_cycle(parameters: Mapping[str, Any]) -> int:
    """The cycle for which a task plays or sweeps."""
    if since := parameters.get("since"):
        return int(since[0].cycle) + 1
    source: UnitReference = parameters["experience" if "experience" in parameters else "checkpoint"]
    return source.next_cycle


def task_run_name(task: str) -> Callable[..., str]:
    """Names the runs of a task by the cycle and, if the run has several shards, by the shard."""

    def name(parameters: dict[str, Any]) -> str:
        shard = parameters["shard"] if "shard" in parameters else parameters["experience"].kind.shard
        suffix = f"-{shard}" if open_run(parameters["run_id"]).shards > 1 else ""
        return f"{task}-{task_cycle(parameters):05d}{suffix}"

    return name


def made_by() -> dict[str, str]:
    """The Prefect runs that make a unit, for its manifest."""
    ids = {"prefect_flow_run_id": flow_run.id, "prefect_task_run_id": task_run.id}
    return {name: str(value) for name, value in ids.items() if value}
