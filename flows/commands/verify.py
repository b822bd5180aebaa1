"""Verify a run: every committed unit, its metrics in MLflow and, if requested, its stored frames."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from storage.errors import StorageError
from storage.formats.evaluation import read_evaluation
from storage.formats.experience import read_experience, read_targets
from storage.runs import StoredRun
from storage.units.unit import CHECKPOINT, EVALUATION, EXPERIENCE, KINDS, TARGETS, Unit, UnitKind
from tasks.progress import report

if TYPE_CHECKING:
    from dqn.checkpoint import Checkpoint
    from dqn.envs.experience import Experience


@dataclass
class Verification:
    """Counts of what was checked and found intact, and the problems that were found."""

    run: str
    digest: str = ""  # of the newest intact checkpoint; it covers all units and metrics that led to it
    cycle: int = 0  # of that checkpoint
    units: int = 0
    bytes: int = 0
    metrics: int = 0
    frames: int = 0  # states replayed
    problems: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """All fields, for JSON."""
        return vars(self)


def verify_run(run: StoredRun, *, replay: bool = False) -> Verification:
    """Check every unit of `run` against its manifest, and its metrics against MLflow.

    Args:
        run: the run to check.
        replay: also replay the stored actions and compare every frame.
    """
    result = Verification(run.name)
    units = _check_units(run, result)
    checkpoints = [unit for (kind, _), unit in units.items() if kind == CHECKPOINT]
    if checkpoints:
        newest = max(checkpoints, key=lambda unit: unit.cycle)
        result.digest, result.cycle = newest.digest, newest.cycle
    else:
        result.problems.append(f"run {run.name} has no intact checkpoint")
    _check_metrics(run, list(units.values()), result)
    if replay:
        _replay(run, units, result)
    return result


def _check_units(run: StoredRun, result: Verification) -> dict[tuple[UnitKind, int], Unit]:
    """Verify and read every unit, and return the units that match their manifests, by kind and cycle."""
    names = [(kind, cycle) for kind in run.kinds(*KINDS, EVALUATION) for cycle in sorted(run.cycles(kind))]
    units: dict[tuple[UnitKind, int], Unit] = {}
    for number, (kind, cycle) in enumerate(names):
        report("verify", cycle, number, len(names))
        try:
            units[kind, cycle] = unit = run.unit(kind, cycle, from_cache=False)
            _read(run, unit)
            result.units += 1
            result.bytes += unit.bytes
        except StorageError as error:
            result.problems.append(str(error))
    return units


def _replay(run: StoredRun, units: Mapping[tuple[UnitKind, int], Unit], result: Verification) -> None:
    """Replay all experience of which the checkpoint before it is stored."""
    shards = run.kinds(EXPERIENCE)
    for kind, cycle in units:
        if kind in shards and (CHECKPOINT, cycle - 1) in units:
            checkpoint = run.checkpoint(units[CHECKPOINT, cycle - 1])
            experience = read_experience(units[kind, cycle].directory)
            _check_frames(checkpoint, experience, cycle, shards.index(kind), result)


def _read(run: StoredRun, unit: Unit) -> None:
    """Read all of a unit in the format of its kind."""
    if unit.kind == CHECKPOINT:
        run.checkpoint(unit)
    elif unit.kind.name == EXPERIENCE.name:
        read_experience(unit.directory)
    elif unit.kind == EVALUATION:
        read_evaluation(unit.directory)
    else:
        read_targets(unit.directory)


def _check_metrics(run: StoredRun, units: list[Unit], result: Verification) -> None:
    """Check that each metric of each unit is in MLflow once, and that no other value is at its step.

    Experience and targets are left out because the checkpoint of their cycle has their metrics, too. Metrics of the
    newest unit of a kind may be missing: if the writer was killed before it published them, resuming the run does.
    """
    units = [unit for unit in units if unit.kind.name not in (EXPERIENCE.name, TARGETS.name)]
    newest = {unit.kind: unit.cycle for unit in sorted(units, key=lambda unit: unit.cycle)}
    names = {metric.name for unit in units for metric in unit.metrics}
    points: Counter[tuple[str, int]] = Counter()
    values: dict[tuple[str, int], float] = {}
    for name in names:
        for point in run.tracking.history(run.run_id, name):
            points[name, point.step] += 1
            values[name, point.step] = point.value
    result.problems += [
        f"MLflow has {count} points of {name} at step {step}" for (name, step), count in points.items() if count > 1
    ]
    for unit in units:
        for metric in unit.metrics:
            found = values.get((metric.name, metric.step))
            if found == metric.value:
                result.metrics += 1
            elif unit.cycle < newest[unit.kind]:
                result.problems.append(
                    f"MLflow has {found} for {metric.name} at step {metric.step}, not {metric.value}"
                )


def _check_frames(checkpoint: Checkpoint, experience: Experience, cycle: int, shard: int, result: Verification) -> None:
    """Replay the stored actions of a shard from the checkpoint before them, and compare every state."""
    from dqn.envs.games import GameSettings
    from dqn.envs.lanes import Lanes

    config = checkpoint.config
    shard_lanes = config.shard_lanes(shard)
    lanes = Lanes(
        GameSettings.of(config), checkpoint.histories[shard_lanes], total_lanes=config.lanes, threads=config.threads
    )
    try:
        for step, actions in enumerate(experience.actions):
            report("replay", cycle, step, experience.steps)
            differing = np.flatnonzero((lanes.states != experience.states[step]).any(axis=(1, 2, 3)))
            if len(differing):
                lane = shard_lanes.start + differing[0]
                result.problems.append(f"cycle {cycle}: step {step} of lane {lane} differs when replayed")
                return
            lanes.step(actions.astype(np.int64))
            result.frames += len(actions)
    finally:
        lanes.close()
