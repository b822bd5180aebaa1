"""What this process still has at hand from the task before: games and learners.

Each is kept under the digest of the committed unit that describes it, so it is either exactly what
would be restored from that unit or not found. Nothing here needs to survive.
"""

from __future__ import annotations

from dqn.checkpoint import Checkpoint, restore_learner
from dqn.environments import Lanes
from dqn.hardware import prepare
from dqn.optimization import Learner
from storage.runs import StoredRun
from storage.units import Unit

_lanes: dict[str, Lanes] = {}
_learners: dict[str, tuple[Checkpoint, Learner]] = {}


def take_learner(run: StoredRun, unit: Unit) -> tuple[Checkpoint, Learner]:
    """The checkpoint in `unit` and the learner it describes; the caller owns the learner."""
    held = _learners.pop(unit.digest, None)
    _learners.clear()
    if held is not None:
        return held
    checkpoint = run.checkpoint(unit)
    return checkpoint, restore_learner(checkpoint, prepare(checkpoint.config))


def keep_learner(unit: Unit, checkpoint: Checkpoint, learner: Learner) -> None:
    """Keep a learner that is just as the checkpoint in `unit` describes it."""
    _learners[unit.digest] = checkpoint, learner


def take_lanes(unit: Unit, checkpoint: Checkpoint) -> Lanes:
    """The games as they stand after the checkpoint in `unit`; the caller owns them."""
    lanes = _lanes.pop(unit.inputs.get("experience", ""), None)
    _close_lanes()
    if lanes is not None:
        return lanes
    config = checkpoint.config
    return Lanes(
        config.game,
        checkpoint.histories,
        config.seed,
        frames_limit=config.episode_frames_limit,
        threads=config.threads,
    )


def keep_lanes(unit: Unit, lanes: Lanes) -> None:
    """Keep games that stand just where the experience in `unit` leaves them."""
    _lanes[unit.digest] = lanes


def release() -> None:
    """Let go of everything: the run is over."""
    _learners.clear()
    _close_lanes()


def _close_lanes() -> None:
    while _lanes:
        _lanes.popitem()[1].close()
