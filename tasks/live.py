"""What this process still has at hand from the task before: games, a learner, experience and its targets.

Each is kept under the digest of the committed unit that describes it, so it is either exactly what
would be restored from that unit or not found. Nothing here needs to survive.
"""

from __future__ import annotations

from typing import Any

from dqn.checkpoint import Checkpoint, Facts, restore_learner
from dqn.environments import Lanes, open_lanes
from dqn.experience import Experience, Targets
from dqn.hardware import prepare
from dqn.optimization import Learner
from storage.experience import read_experience, read_targets
from storage.runs import StoredRun
from storage.units import Unit

_LANES, _LEARNER, _EXPERIENCE, _TARGETS = "lanes", "learner", "experience", "targets"

_held: dict[str, tuple[str, Any]] = {}  # one of each: the digest it is kept under, and the thing


def unit_at_hand(run: StoredRun, kind: str, cycle: int) -> Unit:
    """The committed unit, verified; what was checked or made by this process and is still held is not read again.

    Raises:
        StorageError: there is none, or it is corrupt.
    """
    holder = _LEARNER if kind == "checkpoint" else kind
    return run.unit(kind, cycle, known=_held.get(holder, ("", None))[0])


def take_learner(run: StoredRun, unit: Unit) -> tuple[Checkpoint, Learner]:
    """The checkpoint in `unit` and the learner it describes; the caller owns the learner."""
    held: tuple[Checkpoint, Learner] | None = _take(_LEARNER, unit.digest)
    if held is not None:
        return held
    checkpoint = run.checkpoint(unit)
    return checkpoint, restore_learner(checkpoint, prepare(checkpoint.config))


def keep_learner(unit: Unit, checkpoint: Checkpoint, learner: Learner) -> None:
    """Keep a learner that is just as the checkpoint in `unit` describes it."""
    _held[_LEARNER] = unit.digest, (checkpoint, learner)


def facts_of(run: StoredRun, unit: Unit) -> Facts:
    """The small part of the checkpoint in `unit`."""
    digest, held = _held.get(_LEARNER, ("", None))
    return held[0].facts if digest == unit.digest else run.facts(unit)


def take_lanes(unit: Unit, checkpoint: Checkpoint) -> list[Lanes]:
    """The groups of lanes as they stand after the checkpoint in `unit`; the caller owns them."""
    groups: list[Lanes] | None = _take(_LANES, unit.inputs.get("experience", ""))
    return groups or open_lanes(checkpoint.config, checkpoint.histories)


def keep_played(unit: Unit, groups: list[Lanes], experience: Experience) -> None:
    """Keep the experience in `unit`, and the games that stand just where it leaves them."""
    _held[_LANES] = unit.digest, groups
    _held[_EXPERIENCE] = unit.digest, experience


def played(unit: Unit) -> Experience:
    """The experience in `unit`; without its states, if it must be read."""
    digest, held = _held.get(_EXPERIENCE, ("", None))
    return held if digest == unit.digest else read_experience(unit.directory, with_states=False)


def keep_targets(unit: Unit, targets: Targets) -> None:
    """Keep the targets in `unit`."""
    _held[_TARGETS] = unit.digest, targets


def take_experience(experience: Unit, targets: Unit) -> tuple[Experience, Targets]:
    """The experience and the targets in two units; nothing holds on to them here any more."""
    held: Experience | None = _take(_EXPERIENCE, experience.digest)
    swept: Targets | None = _take(_TARGETS, targets.digest)
    return held or read_experience(experience.directory), swept or read_targets(targets.directory)


def let_go_of_experience() -> None:
    """Do not hold experience and targets any more: what reads more cycles than one needs the memory."""
    _take(_EXPERIENCE, "")
    _take(_TARGETS, "")


def release() -> None:
    """Let go of everything: the run is over."""
    for what in list(_held):
        _take(what, "")


def _take(what: str, digest: str) -> Any:
    """What is held under `digest`, or None; games of another digest are closed."""
    found, held = _held.pop(what, ("", None))
    if held is not None and found == digest:
        return held
    if what == _LANES:
        for lanes in held or ():
            lanes.close()
    return None
