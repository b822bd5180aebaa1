"""Lanes of a run, and how their exact states are restored.

A lane is one slot of the vector environment, which plays episode after episode.
"""

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

NOOP = 0  # number of the no-op action in every game


@dataclass(frozen=True)
class Outcome:
    """Results of one step of L lanes; all arrays have the shape (L,)."""

    rewards: np.ndarray  # float32: not clipped
    life_lost: np.ndarray  # bool
    terminated: np.ndarray  # bool
    truncated: np.ndarray  # bool: the time limit ended the episode before the action, which was not played


class Lanes:
    """L lanes of a game, which start their next episode in the step that ends an episode.

    When an episode reaches the time limit, `states` contains its last state, so that the sweep can bootstrap
    from it. The next step does not play the lane's action: it is reported as truncated and starts the next episode.

    Attributes:
        action_names: names of the game's actions, by action number.
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
        """Open one game for each history and restore its state.

        Args:
            settings: of the games.
            histories: of the L lanes, which may be a subset of the run's lanes.
            total_lanes: number of lanes of the run, by which episode numbers advance; L by default.
            threads: CPU threads that emulate; 0 means one for each core. They do not change any result.
            stopped: event that interrupts the restoring; the lanes must be closed then.
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
        """Current states (L, 105, 80, C) uint8. This is a view, which the next step overwrites."""
        return self._tracer.states

    @property
    def episodes(self) -> np.ndarray:
        """Numbers, in the run, of the current episodes, (L,) int64."""
        return self._episodes

    def with_noops(self, actions: np.ndarray) -> np.ndarray:
        """`actions` (L,) with no-ops in those lanes whose episode starts with more no-ops."""
        return np.where(self._noops_left > 0, NOOP, actions)

    def step(self, actions: np.ndarray) -> Outcome:
        """Take `actions` (L,), one in every lane, and start the next episode in lanes whose episode ended."""
        frames, rewards, terminated, timed_out, lives = self._games.step(actions)
        cut_off = self._timed_out
        terminated = terminated & ~cut_off
        # In a terminated lane, `lives` belongs to the next episode already. The last life was lost, unless the
        # game has no lives. In a timed-out lane, it belongs to the next episode, too, so a life that was lost in
        # this step is not detected.
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
        """Close the games and end their threads. The lanes cannot be used after that."""
        self._games.env.close()
        del self._games  # ale-py ends its threads when the last reference to its games is gone

    def restore(self, histories: list[LaneHistory], stopped: Event) -> None:
        """Replay the histories, one for each lane, so that the games are in the states after them.

        Args:
            histories: of the L lanes. They are replayed side by side; shorter ones start later, so that all of
                them end with the same step.
            stopped: event that interrupts the replay; the lanes must be closed then.
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
        episodes = np.array([history.episode for history in histories])
        # A lane that started in mid-game has replayed episodes that have the numbers of another lane.
        own = (episodes - seeded) % self._total_lanes == 0
        assert np.array_equal(self._episodes[own], episodes[own])
        self._episodes = episodes
        played = np.array([history.steps for history in histories])
        self._noops_left = self._noops(self._episodes) - played

    def _noops(self, episodes: np.ndarray) -> np.ndarray:
        """Numbers of no-ops with which the episodes start."""
        return noop_starts(self._settings.seed, episodes, self._settings.noop_max)

    def _reset(self, mask: np.ndarray, seeded: np.ndarray) -> None:
        """Start the current episode in the lanes of `mask`, and seed those of `seeded`, both (L,) bool."""
        seeds = np.full(len(mask), -1)
        seeds[seeded] = episode_seeds(self._settings.seed, self._episodes[seeded])
        frames, lives = self._games.reset(mask, seeds[mask])
        self._tracer.reset(frames, mask)
        self._lives = np.where(mask, lives, self._lives)
        self._timed_out = self._timed_out & ~mask
        self._seeded_steps[seeded] = 0


def open_lanes(config: TrainConfig, histories: list[LaneHistory], shard: int = 0) -> list[Lanes]:
    """Open the lanes of a shard, one `Lanes` for each group, and restore their histories.

    Args:
        config: of the run, resolved.
        histories: of all lanes of the run.
        shard: number of the shard.

    Raises:
        ValueError: the game of `config` is unknown.
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


def restore_midgame_lanes(groups: list[Lanes], config: TrainConfig, histories: list[LaneHistory], shard: int) -> None:
    """Restore the groups of the `midgame_lanes` of a shard from new histories. If that fails, close all groups.

    Args:
        groups: of the shard, from `open_lanes`.
        config: of the run, resolved.
        histories: of all lanes of the run, from `draw_midgame_starts`.
        shard: number of the shard.
    """
    calls = [
        partial(lanes.restore, histories[where])
        for lanes, where in zip(groups, config.groups(shard), strict=True)
        if where.start >= config.first_midgame_lane
    ]
    with closed_on_failure(groups):
        run_in_threads(calls, max(1, len(calls)), torch_threads=1)


@contextmanager
def closed_on_failure(groups: Iterable[Lanes]) -> Iterator[None]:
    """Close `groups` if the block raises, because the state of their games is undefined then."""
    try:
        yield
    except BaseException:
        for lanes in groups:
            lanes.close()
        raise
