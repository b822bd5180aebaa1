"""Objects that tasks of one process hand to each other without reading them from storage.

Every object is cached with the digest of the committed unit that describes it, and found by that digest. A cached
object equals what would be read from the unit, so the cache may be empty at any time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from dqn.checkpoint import Checkpoint, CheckpointMetadata, restore_learner
from dqn.envs.experience import Experience, Targets
from dqn.envs.histories import is_midgame_cycle
from dqn.envs.lanes import Lanes, open_lanes, restore_midgame_lanes
from dqn.hardware import prepare
from dqn.learning.data_parallel import Processes
from dqn.learning.learner import Learner
from storage.formats.experience import read_all_targets, read_experience, read_experiences
from storage.runs import StoredRun
from storage.units.unit import EXPERIENCE, Unit

T = TypeVar("T")


def _close_lanes(groups: list[Lanes]) -> None:
    for lanes in groups:
        lanes.close()


@dataclass
class Slot(Generic[T]):
    """At most one object with the unit that describes it."""

    close: Callable[[T], None] = lambda value: None  # called with an object that nobody pops
    _entry: tuple[Unit, T] | None = None

    @property
    def unit(self) -> Unit | None:
        """The unit of the cached object, if there is one."""
        return self._entry[0] if self._entry else None

    @property
    def digest(self) -> str:
        """The digest of that unit; empty without one."""
        return self._entry[0].digest if self._entry else ""

    def put(self, unit: Unit, value: T) -> None:
        """Cache `value` instead of what was cached."""
        self.clear()
        self._entry = unit, value

    def get(self, digest: str) -> T | None:
        """The object of the unit with this digest, which stays cached; None if another one or none is cached."""
        return self._entry[1] if self._entry and self._entry[0].digest == digest else None

    def pop(self, digest: str) -> T | None:
        """The object of the unit with this digest, which the caller owns now. Any other object is dropped."""
        value = self.get(digest)
        if value is None:
            self.clear()
        self._entry = None
        return value

    def clear(self) -> None:
        """Drop the cached object."""
        entry, self._entry = self._entry, None
        if entry:
            self.close(entry[1])


@dataclass
class ProcessCache:
    """What a process keeps between tasks; experience, targets and lanes by the number of their shard."""

    learner: Slot[tuple[Checkpoint, Learner]] = field(default_factory=Slot)
    actor: Slot[tuple[Checkpoint, Learner]] = field(default_factory=Slot)  # the learner that plays on `play_device`
    lanes: dict[int, Slot[list[Lanes]]] = field(default_factory=lambda: defaultdict(lambda: Slot(_close_lanes)))
    experience: dict[int, Slot[Experience]] = field(default_factory=lambda: defaultdict(Slot))
    targets: dict[int, Slot[Targets]] = field(default_factory=lambda: defaultdict(Slot))
    processes: Processes | None = None

    def knows(self, digest: str) -> bool:
        """Whether the content of the unit with this digest is cached, so that its files need not be read."""
        slots: list[Slot[Any]] = [self.learner, self.actor, *self.experience.values(), *self.targets.values()]
        return any(slot.digest == digest for slot in slots)

    def metadata(self, run: StoredRun, unit: Unit) -> CheckpointMetadata:
        """The metadata of the checkpoint in `unit`."""
        for slot in (self.learner, self.actor):
            if cached := slot.get(unit.digest):
                return cached[0].metadata
        return run.metadata(unit)

    def pop_learner(self, run: StoredRun, unit: Unit) -> tuple[Checkpoint, Learner]:
        """The checkpoint in `unit` and the learner that it describes, to be trained; the caller owns the learner."""
        if cached := self.learner.pop(unit.digest):
            return cached
        checkpoint = run.checkpoint(unit)
        return checkpoint, restore_learner(checkpoint, prepare(checkpoint.config))

    def pop_actor(self, run: StoredRun, unit: Unit) -> tuple[Checkpoint, Learner]:
        """The checkpoint in `unit` and a learner that plays as `play_device` says; the caller owns it."""
        config = run.config.to_play()
        if config == run.config:
            return self.pop_learner(run, unit)
        if cached := self.actor.pop(unit.digest):
            return cached
        checkpoint = run.checkpoint(unit)
        described = replace(checkpoint, metadata=replace(checkpoint.metadata, config=config))
        return checkpoint, restore_learner(described, prepare(config))

    def put_learner(self, unit: Unit, checkpoint: Checkpoint, learner: Learner) -> None:
        """Cache a learner, or an actor, that equals the checkpoint in `unit`."""
        slot = self.learner if learner.config == checkpoint.config else self.actor
        slot.put(unit, (checkpoint, learner))

    def pop_lanes(self, unit: Unit, checkpoint: Checkpoint, shard: int = 0) -> list[Lanes]:
        """A shard's groups of lanes as the checkpoint in `unit` describes them; the caller owns them.

        Games of shards that other processes have played since are closed.
        """
        for slot in self.lanes.values():
            if slot.unit is not None and slot.unit.cycle < unit.cycle:
                slot.clear()
        config, histories = checkpoint.config, checkpoint.histories
        kind = EXPERIENCE.of_shards(config.shards)[shard]
        groups = self.lanes[shard].pop(unit.inputs.get(str(kind), ""))
        if groups and is_midgame_cycle(config, unit.cycle):
            restore_midgame_lanes(groups, config, histories, shard)
        return groups or open_lanes(config, histories, shard)

    def put_played(self, unit: Unit, groups: list[Lanes], experience: Experience) -> None:
        """Cache the experience in `unit` and the games, which are left where it ends.

        Of one of several shards the states are not cached: `optimize` reads the states of all shards into one array.
        """
        shard = unit.kind.shard or 0
        if unit.kind.shard is not None:
            experience = replace(experience, states=experience.states[:0].copy())
        self.lanes[shard].put(unit, groups)
        self.experience[shard].put(unit, experience)

    def played(self, unit: Unit) -> Experience:
        """The experience in `unit`; without its states if it must be read."""
        cached = self.experience[unit.kind.shard or 0].get(unit.digest)
        return cached or read_experience(unit.directory, with_states=False)

    def put_targets(self, unit: Unit, targets: Targets) -> None:
        """Cache the targets in `unit`."""
        self.targets[unit.kind.shard or 0].put(unit, targets)

    def pop_experience(self, experience: list[Unit], targets: list[Unit]) -> tuple[Experience, Targets]:
        """The experience and the targets of all shards. They are not cached any more."""
        played = self.experience[0].pop(experience[0].digest) if len(experience) == 1 else None
        swept = self.targets[0].pop(targets[0].digest) if len(targets) == 1 else None
        self.clear_experience()
        return (
            played or read_experiences([[unit.directory for unit in experience]]),
            swept or read_all_targets([unit.directory for unit in targets]),
        )

    def clear_experience(self) -> None:
        """Drop experience and targets."""
        slots: list[Slot[Any]] = [*self.experience.values(), *self.targets.values()]
        for slot in slots:
            slot.clear()

    def processes_of(self, checkpoint: Checkpoint) -> Processes:
        """The processes that share optimization runs of the checkpoint's configuration, started at the first call."""
        about = checkpoint.config, len(checkpoint.metadata.action_names)
        if self.processes is None or not self.processes.are_for(*about):
            self.close_processes()
            self.processes = Processes(*about)
        return self.processes

    def close_processes(self) -> None:
        """End the processes that share optimization runs."""
        if self.processes is not None:
            self.processes.close()
        self.processes = None

    def clear(self) -> None:
        """Drop everything: the run is over."""
        slots: list[Slot[Any]] = [self.learner, self.actor, *self.lanes.values()]
        for slot in slots:
            slot.clear()
        self.clear_experience()
        self.close_processes()


CACHE = ProcessCache()  # tasks are plain functions that Prefect or Dask calls, so the cache is one of the process


def clear() -> None:
    """Drop everything that this process has cached."""
    CACHE.clear()
