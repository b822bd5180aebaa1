"""What came out of a sweep: one row for each trial, with its objective and the interval of that over the seeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from dqn.evaluation.evaluation import interquartile_mean
from flows.sweeps.study import REASON, Study

_STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
}


@dataclass(frozen=True)
class TrialResult:
    """One trial of a sweep."""

    number: int
    params: Mapping[str, Any]
    status: str  # complete, pruned, failed or running
    seeds: Mapping[int, float]  # objective of each seed that is trained, at its last number of states
    objective: float | None  # mean over the seeds; None while it runs, and if it failed
    reason: str  # why it failed

    @property
    def interval(self) -> tuple[float, float, float] | None:
        """Interquartile mean over the seeds with its 95 % bootstrap interval; None with fewer than two seeds."""
        return _interval(tuple(self.seeds.values())) if len(self.seeds) > 1 else None


@cache  # because the bootstrap takes long, and the table of a sweep is shown again and again
def _interval(values: tuple[float, ...]) -> tuple[float, float, float]:
    return interquartile_mean([np.array(values)])


def results(study: Study) -> list[TrialResult]:
    """All trials: the complete ones, best first, and then the others in the order in which they were proposed."""
    best = study.ranking()
    others = [trial for trial in study.trials if trial.state != TrialState.COMPLETE]
    return [_result(trial) for trial in [*best, *others]]


def _result(trial: FrozenTrial) -> TrialResult:
    return TrialResult(
        number=trial.number,
        params=trial.params,
        status=_STATES[trial.state],
        seeds=Study.of_seeds(trial),
        objective=trial.value,
        reason=trial.user_attrs.get(REASON, ""),
    )


def columns(study: Study) -> list[str]:
    """The columns of the table of trials."""
    return ["trial", *study.sweep.fields, "seeds", "objective", "interval", "status"]


def row(study: Study, result: TrialResult) -> list[str]:
    """Format a trial in the order of `columns`."""
    interval = result.interval
    mean = result.objective
    if mean is None and result.seeds:
        mean = float(np.mean(list(result.seeds.values())))
    return [
        str(result.number),
        *(short(result.params.get(name, "")) for name in study.sweep.fields),
        f"{len(result.seeds)} of {len(study.sweep.seeds)}",
        "-" if mean is None else f"{mean:.2f}",
        "-" if interval is None else f"{interval[1]:.2f} to {interval[2]:.2f}",
        f"{result.status}: {result.reason}" if result.reason else result.status,
    ]


def short(value: Any) -> str:
    """Format a value of a field in a few characters."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
