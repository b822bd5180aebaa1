"""Choice of a run's checkpoints by their evaluations, and the evaluations themselves."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from dqn.metrics import EVALUATION_MEAN
from storage.errors import StorageError
from storage.runs import StoredRun
from storage.units.unit import CHECKPOINT, EVALUATION, Unit, UnitKind, kinds_in

_log = logging.getLogger(__name__)


def evaluation_kinds(run: StoredRun) -> list[UnitKind]:
    """Kinds of the stored evaluations; the one of the run's own protocol comes first."""
    return [kind for kind in kinds_in(run.artifacts.names()) if kind.name == EVALUATION.name]


def evaluations(run: StoredRun) -> Iterator[Unit]:
    """Valid evaluations by the run's own protocol, newest first. A broken one is logged and skipped."""
    for cycle in run.cycles(EVALUATION):
        try:
            yield run.unit(EVALUATION, cycle)
        except StorageError as error:
            _log.warning("%s; this evaluation is skipped", error)


def evaluated_states(run: StoredRun) -> int:
    """Number of states that the run had played at its newest evaluation; 0 before the first evaluation."""
    return next((unit.metrics[0].step for unit in evaluations(run)), 0)


def best_cycle(run: StoredRun) -> int | None:
    """The cycle of the stored checkpoint with the highest mean score, the earliest of equal ones; None without one.

    Pruned checkpoints need not be considered, because pruning spares the best checkpoint.
    """
    means: dict[int, float] = {}
    for cycle in sorted(set(run.cycles(CHECKPOINT)) & set(run.cycles(EVALUATION))):
        try:
            means[cycle] = run.unit(EVALUATION, cycle).metric(EVALUATION_MEAN)
        except StorageError as error:
            _log.warning("%s; this evaluation is skipped", error)
    return max(means, key=means.__getitem__, default=None)


def _not_evaluated(run: StoredRun) -> str:
    """What to do if a stored checkpoint must be evaluated by the run's own protocol."""
    others = [kind.protocol for kind in evaluation_kinds(run) if kind.protocol]
    if not others:
        return f"run {run.name} was not evaluated yet; `dqn evaluate {run.name}` does it"
    return (
        f"run {run.name} was evaluated only by other protocols than its own ({', '.join(others)}), so its checkpoints "
        f"cannot be compared; `dqn evaluate {run.name}` without options does it"
    )


def find_checkpoint(run: StoredRun, which: str) -> Unit:
    """The checkpoint `latest`, `best`, or of the cycle with that number.

    Raises:
        ValueError: there is no such checkpoint; the message lists the stored ones.
        StorageError: the checkpoint is broken.
    """
    cycles = run.cycles(CHECKPOINT)
    if which == "latest":  # a broken one is not skipped: the scores would silently be those of another checkpoint
        return run.unit(CHECKPOINT, cycles[0]) if cycles else run.newest_checkpoint()
    best = best_cycle(run)
    stored = f"run {run.name} has the checkpoints {', '.join(map(str, sorted(cycles)))}"
    if which == "best":
        if best is None:
            raise ValueError(_not_evaluated(run))
        which = str(best)
    if not which.isdecimal():
        raise ValueError(f"checkpoint is {which!r}; it must be latest, best or the number of a cycle; {stored}")
    if int(which) not in cycles:
        raise ValueError(f"there is no checkpoint of cycle {int(which)}; {stored}")
    return run.unit(CHECKPOINT, int(which))
