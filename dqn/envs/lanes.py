"""Lanes: slots of a vector environment, each of which plays episode after episode and can be restored exactly."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from threading import Event

import numpy as np

from dqn.config import TrainConfig
from dqn.envs.backends import open_games
from dqn.envs.games import GameSettings, action_names
from dqn.envs.histories import SEEDED_STEPS, LaneHistory
from dqn.envs.observations import FrameStack, MotionTracer
from dqn.randomness import episode_seeds, noop_starts
from dqn.threads import run_in_threads

NOOP = 0  # the number of that action in every game


@dataclass(frozen=True)
class Outcome:
    """What one step of every lane brought; all arrays (L,)."""

    rewards: np.ndarray  # float32
    life_lost: np.ndarray  # bool
    terminated: np.ndarray  # bool
    truncated: np.ndarray  # bool: cut off before the action, which was not played


class Lanes:
    """L games side by side that never stop: where an episode ends the next begins.

    A lane whose episode hits the time limit shows the episode's last state once more, so that it can
    be bootstrapped from; the step after that is reported as truncated and starts the next episode.
    """

    def __init__(
        self,
        settings: GameSettings,
        histories: list[LaneHistory],
        *,
        total_lanes: int | None = None,
        threads: int = 0,
        stopped: Event | None = None,
    ) -> None:
        """Open one game for each history and restore it.

        Args:
            settings: of the games.
            histories: of L lanes, which may be a subset of the run's lanes.
            total_lanes: number of lanes of the run, by which episode numbers advance; L by default.
            threads: CPU threads that emulate; 0 means one for each core. Results do not depend on it.
            stopped: restoring ends early when this is set; the lanes are of no use then.
        """
        lanes = len(histories)
        self.action_names = action_names(settings.game, settings.full_action_set)
        self._settings = settings
        self._games = open_games(settings, lanes, threads)
        self._tracer = FrameStack(lanes, settings.stacked_frames) if settings.stacked_frames else MotionTracer(lanes)
        self._lives = np.zeros(lanes, np.int64)
        self._timed_out = np.zeros(lanes, bool)
        self._total_lanes = total_lanes or lanes
        self._episodes = np.zeros(lanes, np.int64)
        self._seeded_steps = np.zeros(lanes, np.int64)
        self._noops_left = np.zeros(lanes, np.int64)
        self.restore(histories, stopped or Event())

    @property
    def states(self) -> np.ndarray:
        """(L, 105, 80, C) uint8: what each lane shows now. A view: the next step overwrites it."""
        return self._tracer.states

    @property
    def episodes(self) -> np.ndarray:
        """(L,) int64: the episode each lane is in."""
        return self._episodes

    def with_noops(self, actions: np.ndarray) -> np.ndarray:
        """The actions (L,) to take: no-ops in lanes whose episode still starts with them, else `actions`."""
        return np.where(self._noops_left > 0, NOOP, actions)

    def step(self, actions: np.ndarray) -> Outcome:
        """Take one action (L,) in every lane, and begin the next episode where one ended."""
        frames, rewards, terminated, timed_out, lives = self._games.step(actions)
        cut_off = self._timed_out
        terminated = terminated & ~cut_off
        # Where the game is over these are already the next one's lives; over means that the last was lost.
        # Where it timed out they are, too: a life lost in that very step is not seen.
        life_lost = np.where(terminated, self._lives > 0, lives < self._lives) & ~cut_off
        self._timed_out = timed_out & ~terminated & ~cut_off
        self._lives = lives
        self._seeded_steps += 1
        self._noops_left -= 1
        self._tracer.advance(frames)
        ended = terminated | cut_off
        if ended.any():
            self._episodes = self._episodes + ended * self._total_lanes
            self._tracer.reset(frames, terminated)
            self._noops_left[ended] = self._noops(self._episodes[ended])
            seeded = ended & (self._seeded_steps >= SEEDED_STEPS)
            if (cut_off | seeded).any():
                self._reset(cut_off | seeded, seeded)
        return Outcome(np.where(cut_off, 0, rewards).astype(np.float32), life_lost, terminated, cut_off)

    def close(self) -> None:
        """End the games and their threads; nothing else can be asked of these lanes then."""
        self._games.env.close()
        del self._games  # ale-py ends its threads when nothing holds its games any more

    def restore(self, histories: list[LaneHistory], stopped: Event) -> None:
        """Bring every lane to where its history leads, or not so far if `stopped`.

        All are played again, shorter ones beginning later, so that they arrive together.
        """
        lengths = np.array([len(history.actions) for history in histories])
        seeded = np.array([history.seeded_episode for history in histories])
        longest = int(lengths.max())
        script = np.zeros((longest, len(histories)), np.int64)
        self._seeded_steps[:] = 0
        for lane, history in enumerate(histories):
            script[longest - lengths[lane] :, lane] = history.actions
        for done in range(longest + 1):
            if stopped.is_set():
                return
            begins = lengths == longest - done
            if done == 0 or begins.any():
                self._episodes = np.where(begins, seeded, self._episodes)
                self._reset(np.ones_like(begins) if done == 0 else begins, begins)
            if done < longest:
                self.step(script[done])
        there = np.array([history.episode for history in histories])
        own = (there - seeded) % self._total_lanes == 0  # else it started in mid-game, in numbers of another lane
        assert np.array_equal(self._episodes[own], there[own])
        self._episodes = there
        played = np.array([history.steps for history in histories])
        self._noops_left = self._noops(self._episodes) - played

    def _noops(self, episodes: np.ndarray) -> np.ndarray:
        return noop_starts(self._settings.seed, episodes, self._settings.noop_max)

    def _reset(self, mask: np.ndarray, seeded: np.ndarray) -> None:
        """Begin an episode in the lanes of `mask`, those of `seeded` with the seed of that episode."""
        seeds = np.full(len(mask), -1)
        seeds[seeded] = episode_seeds(self._settings.seed, self._episodes[seeded])
        frames, lives = self._games.reset(mask, seeds[mask])
        self._tracer.reset(frames, mask)
        self._lives = np.where(mask, lives, self._lives)
        self._timed_out = self._timed_out & ~mask
        self._seeded_steps[seeded] = 0


def open_lanes(config: TrainConfig, histories: list[LaneHistory], shard: int = 0) -> list[Lanes]:
    """The lanes of a shard of a run in their groups, each brought to where its history leads.

    Args:
        config: of the run, resolved.
        histories: of all lanes of the run.
        shard: its number.

    Raises:
        ValueError: unknown game.
    """
    settings, groups, opened = GameSettings.of(config), config.groups(shard), dict[int, Lanes]()

    def open_group(number: int, stopped: Event) -> None:
        opened[number] = Lanes(
            settings,
            histories[groups[number]],
            total_lanes=len(histories),
            threads=max(1, config.threads // len(groups)),
            stopped=stopped,
        )

    with closed_on_failure(opened.values()):
        run_in_threads([partial(open_group, number) for number in range(len(groups))], len(groups), torch_threads=1)
    return [opened[number] for number in range(len(groups))]


def start_in_midgame(groups: list[Lanes], config: TrainConfig, histories: list[LaneHistory], shard: int) -> None:
    """Bring those of a shard's groups that start in mid-game to where their new histories lead; close all if it fails.

    Args:
        groups: of the shard, by `open_lanes`.
        config: of the run, resolved.
        histories: of all lanes of the run.
        shard: its number.
    """
    starting = [
        each for each in zip(groups, config.groups(shard), strict=True) if each[1].start >= config.first_midgame_lane
    ]
    calls = [partial(lanes.restore, histories[where]) for lanes, where in starting]
    with closed_on_failure(groups):
        run_in_threads(calls, max(1, len(calls)), torch_threads=1)


@contextmanager
def closed_on_failure(groups: Iterable[Lanes]) -> Iterator[None]:
    """Close the lanes that are there when the block fails or is interrupted: they were left somewhere in the middle."""
    try:
        yield
    except BaseException:
        for lanes in groups:
            lanes.close()
        raise
