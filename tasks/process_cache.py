"""What this process still has at hand from the task before: games, a learner, experience and its targets.

Each is kept with the committed unit that describes it and found by its digest, so it is either exactly what
would be restored from that unit or not found. Nothing here needs to survive.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dqn.checkpoint import Checkpoint, CheckpointMetadata, restore_learner
from dqn.envs.experience import Experience, Targets
from dqn.envs.histories import starts_in_midgame
from dqn.envs.lanes import Lanes, open_lanes, start_in_midgame
from dqn.hardware import prepare
from dqn.learning.data_parallel import Processes
from dqn.learning.learner import Learner
from storage.formats.experience import read_all_targets, read_experience, read_experiences
from storage.runs import StoredRun
from storage.units.unit import CHECKPOINT, EXPERIENCE, Unit, UnitKind

_LEARNER, _PLAYER = "learner", "player"

# One of each, with the unit that describes it: a learner, and a player where that is another one; experience and
# targets of each shard under their kinds; and the shard's games.
_held: dict[str, tuple[Unit, Any]] = {}
_processes: Processes | None = None


def unit_at_hand(run: StoredRun, kind: UnitKind, cycle: int) -> Unit:
    """The committed unit, verified; what was checked or made by this process and is still held is not read again.

    Raises:
        StorageError: there is none, or it is corrupt.
    """
    held = _held.get(_LEARNER) or _held.get(_PLAYER) if kind == CHECKPOINT else _held.get(str(kind))
    return run.unit(kind, cycle, known=held[0].digest if held else "")


def take_learner(run: StoredRun, unit: Unit, *, to_play: bool = False) -> tuple[Checkpoint, Learner]:
    """The checkpoint in `unit` and the learner it describes, to be trained, or to play; the caller owns the learner."""
    what = _PLAYER if to_play and run.config.to_play() != run.config else _LEARNER
    held: tuple[Checkpoint, Learner] | None = _take(what, unit.digest)
    if held is not None:
        return held
    checkpoint = run.checkpoint(unit)
    config = checkpoint.config.to_play() if to_play else checkpoint.config
    described = replace(checkpoint, metadata=replace(checkpoint.metadata, config=config))
    return checkpoint, restore_learner(described, prepare(config))


def keep_learner(unit: Unit, checkpoint: Checkpoint, learner: Learner) -> None:
    """Keep a learner that is just as the checkpoint in `unit` describes it."""
    _held[_LEARNER if learner.config == checkpoint.config else _PLAYER] = unit, (checkpoint, learner)


def metadata_of(run: StoredRun, unit: Unit) -> CheckpointMetadata:
    """The small part of the checkpoint in `unit`."""
    for what in (_LEARNER, _PLAYER):
        held = _held.get(what)
        if held and held[0].digest == unit.digest:
            metadata: CheckpointMetadata = held[1][0].metadata
            return metadata
    return run.metadata(unit)


def take_lanes(unit: Unit, checkpoint: Checkpoint, shard: int = 0) -> list[Lanes]:
    """A shard's groups of lanes as they stand after the checkpoint in `unit`; the caller owns them.

    Games of shards that other processes have played since are closed.
    """
    for what, (held, _) in list(_held.items()):
        if what.startswith("lanes") and held.cycle < unit.cycle:
            _take(what, "")
    kind = EXPERIENCE.of_shards(checkpoint.config.shards)[shard]
    groups: list[Lanes] | None = _take(_lanes(kind), unit.inputs.get(str(kind), ""))
    config, histories = checkpoint.config, checkpoint.histories
    if groups and starts_in_midgame(config, unit.cycle):
        start_in_midgame(groups, config, histories, shard)
    return groups or open_lanes(config, histories, shard)


def keep_played(unit: Unit, groups: list[Lanes], experience: Experience) -> None:
    """Keep the experience in `unit`, of a shard without its states, and the games that stand where it leaves them."""
    if unit.kind != EXPERIENCE:  # they are read from all shards into one array
        experience = replace(experience, states=experience.states[:0].copy())
    _held[_lanes(unit.kind)] = unit, groups
    _held[str(unit.kind)] = unit, experience


def played(unit: Unit) -> Experience:
    """The experience in `unit`; without its states, if it must be read."""
    held = _held.get(str(unit.kind))
    return held[1] if held and held[0].digest == unit.digest else read_experience(unit.directory, with_states=False)


def keep_targets(unit: Unit, targets: Targets) -> None:
    """Keep the targets in `unit`."""
    _held[str(unit.kind)] = unit, targets


def take_experience(experience: list[Unit], targets: list[Unit]) -> tuple[Experience, Targets]:
    """The experience and the targets in the units of all shards; nothing holds on to them here any more."""
    held: Experience | None = _take("experience", experience[0].digest)
    swept: Targets | None = _take("targets", targets[0].digest)
    return (
        held or read_experiences([[unit.directory for unit in experience]]),
        swept or read_all_targets([unit.directory for unit in targets]),
    )


def processes_of(checkpoint: Checkpoint) -> Processes:
    """The processes that share optimization runs of the checkpoint's configuration, started when first asked for."""
    global _processes
    about = checkpoint.config, len(checkpoint.metadata.action_names)
    if _processes is None or not _processes.are_for(*about):
        _end_processes()
        _processes = Processes(*about)
    return _processes


def _end_processes() -> None:
    global _processes
    if _processes is not None:
        _processes.close()
    _processes = None


def let_go_of_experience() -> None:
    """Do not hold experience and targets any more: what reads more cycles than one needs the memory."""
    _take("experience", "")
    _take("targets", "")


def release() -> None:
    """Let go of everything: the run is over."""
    for what in list(_held):
        _take(what, "")
    _end_processes()


def _lanes(kind: UnitKind) -> str:
    """What games are held as that were left where experience of `kind` ends."""
    return "lanes" if kind.shard is None else f"lanes-{kind.shard}"


def _take(what: str, digest: str) -> Any:
    """What is held under `digest`, or None; games of another digest are closed."""
    unit, held = _held.pop(what, (None, None))
    if unit is not None and unit.digest == digest:
        return held
    if what.startswith("lanes"):
        for lanes in held or ():
            lanes.close()
    return None
