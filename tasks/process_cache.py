"""Objects that tasks of one process hand to each other without reading them from storage.

Every object is cached with the digest of the committed unit that describes it, and found by that digest. A cached
object equals what would be read from the unit, so the cache may be empty at any time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from dqn.checkpoint import Checkpoint, restore_learner
from dqn.config import TrainConfig
from dqn.envs.experience import Experience, Targets
from dqn.envs.histories import is_midgame_cycle
from dqn.envs.lanes import Lanes, open_lanes, restore_midgame_lanes
from dqn.hardware import prepare
from dqn.learning.data_parallel import Processes
from dqn.learning.learner import Learner
from storage.formats.experience import read_all_targets, read_experiences
from storage.runs import StoredRun
from storage.units.unit import Unit

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


def _plays_apart(config: TrainConfig) -> bool:
    """Whether a learner of its own plays."""
    return config.overlap == "yes" or config.to_play() != config


@dataclass
class Shelf(Generic[T]):
    """Objects of several cycles and shards, each with the unit that describes it."""

    _entries: dict[str, tuple[Unit, T]] = field(default_factory=dict)  # by digest; every change is one atomic step

    def __contains__(self, digest: str) -> bool:
        return digest in self._entries

    def put(self, unit: Unit, value: T) -> None:
        """Cache `value`."""
        self._entries[unit.digest] = unit, value

    def get(self, digest: str) -> T | None:
        """The object of the unit with this digest, which stays cached; None without one."""
        entry = self._entries.get(digest)
        return entry[1] if entry else None

    def drop(self, cycle: int) -> None:
        """Drop the objects of all cycles up to `cycle`."""
        for digest, (unit, _) in list(self._entries.items()):
            if unit.cycle <= cycle:
                self._entries.pop(digest, None)

    def clear(self) -> None:
        """Drop all objects."""
        self._entries.clear()


@dataclass
class ProcessCache:
    """What a process keeps between tasks. A task that plays may run at the same time as one that optimizes."""

    learner: Slot[tuple[Checkpoint, Learner]] = field(default_factory=Slot)
    actor: Slot[tuple[Checkpoint, Learner]] = field(default_factory=Slot)  # a learner that only plays
    lanes: dict[int, Slot[list[Lanes]]] = field(default_factory=lambda: defaultdict(lambda: Slot(_close_lanes)))
    experience: Shelf[Experience] = field(default_factory=Shelf)
    targets: Shelf[Targets] = field(default_factory=Shelf)
    processes: Processes | None = None

    def __reduce__(self) -> str:
        """A task that is sent to a worker uses the cache of the worker's process."""
        return "CACHE"

    def knows(self, digest: str) -> bool:
        """Whether the content of the unit with this digest is cached, so that its files need not be read."""
        if digest in self.experience or digest in self.targets:
            return True
        return digest in (self.learner.digest, self.actor.digest)

    def pop_learner(self, run: StoredRun, unit: Unit) -> tuple[Checkpoint, Learner]:
        """The checkpoint in `unit` and the learner that it describes, to be trained; the caller owns the learner."""
        if cached := self.learner.pop(unit.digest):
            return cached
        checkpoint = run.checkpoint(unit)
        return checkpoint, restore_learner(checkpoint, prepare(checkpoint.config))

    def put_learner(self, unit: Unit, checkpoint: Checkpoint, learner: Learner) -> None:
        """Cache a learner that equals the checkpoint in `unit`."""
        self.learner.put(unit, (checkpoint, learner))

    def pop_actor(self, run: StoredRun, unit: Unit) -> tuple[Checkpoint, Learner]:
        """The checkpoint in `unit` and a learner that plays as the run's configuration says; the caller owns it.

        It is the learner in training, unless that is trained at the same time or on another device.
        """
        if not _plays_apart(run.config):
            return self.pop_learner(run, unit)
        if cached := self.actor.pop(unit.digest):
            return cached
        checkpoint, config = run.checkpoint(unit), run.config.to_play()
        described = replace(checkpoint, metadata=replace(checkpoint.metadata, config=config))
        return checkpoint, restore_learner(described, prepare(config))

    def put_actor(self, unit: Unit, checkpoint: Checkpoint, actor: Learner) -> None:
        """Cache what `pop_actor` returned."""
        slot = self.actor if _plays_apart(checkpoint.config) else self.learner
        slot.put(unit, (checkpoint, actor))

    def pop_lanes(self, digest: str, checkpoint: Checkpoint, shard: int = 0) -> list[Lanes]:
        """A shard's groups of lanes as `checkpoint` describes them; the caller owns them.

        Games of shards that other processes have played since are closed.

        Args:
            digest: of the experience at whose end the lanes are cached, the shard's in the cycle of `checkpoint`.
            checkpoint: state of the run before the cycle that is to be played.
            shard: number of the shard.
        """
        config, histories, cycle = checkpoint.config, checkpoint.histories, checkpoint.metadata.counters.cycle
        for slot in self.lanes.values():
            if slot.unit is not None and slot.unit.cycle < cycle:
                slot.clear()
        groups = self.lanes[shard].pop(digest)
        if groups and is_midgame_cycle(config, cycle):
            restore_midgame_lanes(groups, config, histories, shard)
        return groups or open_lanes(config, histories, shard)

    def put_played(self, unit: Unit, groups: list[Lanes], experience: Experience) -> None:
        """Cache the experience in `unit` and the games, which are left where it ends.

        Of one of several shards the states are not cached: `optimize` reads the states of all shards into one array.
        Experience from before the last cycle is dropped.
        """
        shard = unit.kind.shard or 0
        if unit.kind.shard is not None:
            experience = replace(experience, states=experience.states[:0].copy())
        self.lanes[shard].put(unit, groups)
        self.experience.drop(unit.cycle - 2)
        self.experience.put(unit, experience)

    def played(self, units: Sequence[Unit]) -> Experience:
        """The experience of one or all shards of a cycle; without its states if it must be read."""
        cached = self.experience.get(units[0].digest) if len(units) == 1 else None
        return cached or read_experiences([[unit.directory for unit in units]], with_states=False)

    def put_targets(self, unit: Unit, targets: Targets) -> None:
        """Cache the targets in `unit`. Those of earlier cycles are dropped."""
        self.targets.drop(unit.cycle - 1)
        self.targets.put(unit, targets)

    def pop_experience(self, experience: list[Unit], targets: list[Unit]) -> tuple[Experience, Targets]:
        """The experience and the targets of all shards of a cycle. They are not cached any more."""
        played = self.experience.get(experience[0].digest) if len(experience) == 1 else None
        swept = self.targets.get(targets[0].digest) if len(targets) == 1 else None
        self.drop_experience(experience[0].cycle)
        return (
            played or read_experiences([[unit.directory for unit in experience]]),
            swept or read_all_targets([unit.directory for unit in targets]),
        )

    def drop_experience(self, cycle: int) -> None:
        """Drop experience and targets of the cycles up to `cycle`."""
        self.experience.drop(cycle)
        self.targets.drop(cycle)

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
        self.experience.clear()
        self.targets.clear()
        self.close_processes()


CACHE = ProcessCache()  # tasks are plain functions that Prefect or Dask calls, so the cache is one of the process


def clear() -> None:
    """Drop everything that this process has cached."""
    CACHE.clear()
