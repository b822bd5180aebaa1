"""Many Atari games side by side, each episode reproducible from its seed and its actions."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import ale_py
import gymnasium
import numpy as np
from gymnasium.vector import SyncVectorEnv

from dqn.config import nearest
from dqn.episodes import LaneHistory, first_histories
from dqn.motion_tracer import STATE_HEIGHT, STATE_WIDTH, MotionTracer, small_frames
from dqn.randomness import episode_seeds

gymnasium.register_envs(ale_py)


def game_names() -> list[str]:
    """Ids of all Atari games that can be played from the screen."""
    return sorted(
        name
        for name, spec in gymnasium.registry.items()
        if str(spec.entry_point).startswith("ale_py") and "-ram" not in name
    )


def check_game(game: str) -> None:
    """Raise a ValueError with near matches unless `game` is an Atari game's id."""
    names = game_names()
    if game not in names:
        hint = nearest(game, names) or "; an id looks like ALE/Breakout-v5"
        raise ValueError(f"unknown game {game!r}{hint}")


def game_title(game: str) -> str:
    """The bare name of a game: `Breakout` for ALE/Breakout-v5 and for Breakout-v0."""
    return re.sub(r"(NoFrameskip|Deterministic)?-v\d+$", "", game.removeprefix("ALE/"))


@dataclass(frozen=True)
class Outcome:
    """What one step of every lane brought; all arrays (L,)."""

    rewards: np.ndarray  # float32
    life_lost: np.ndarray  # bool
    terminated: np.ndarray  # bool
    truncated: np.ndarray  # bool: cut off before the action, which was not played


class Lanes:
    """L games side by side that never stop: where an episode ends the next begins, with its own seed.

    A lane whose episode hits the time limit shows the episode's last state once more, so that it can
    be bootstrapped from; the step after that is reported as truncated and starts the next episode.
    """

    def __init__(self, game: str, lanes: int, seed: int, *, frames_limit: int = 108_000, threads: int = 0) -> None:
        """Start `lanes` games of `game` at the resets of their first episodes.

        Raises:
            ValueError: unknown game.
        """
        check_game(game)
        self.game = game
        self._seed = seed
        self._games = _open_games(game, lanes, frames_limit, threads)
        self._tracer = MotionTracer(lanes)
        self.actions = self._games.actions
        self.action_names = action_names(game)
        self.restore(first_histories(lanes))

    @property
    def states(self) -> np.ndarray:
        """(L, 105, 80, 2) uint8: what each lane shows now. A view: the next step overwrites it."""
        return self._tracer.states

    @property
    def episodes(self) -> np.ndarray:
        """(L,) int64: the episode each lane is in."""
        return self._episodes

    def step(self, actions: np.ndarray) -> Outcome:
        """Take one action (L,) in every lane, and begin the next episode where one ended."""
        frames, rewards, terminated, timed_out, lives = self._games.step(actions)
        cut_off = self._timed_out
        life_lost = (lives < self._lives) & ~cut_off
        terminated = terminated & ~cut_off
        self._timed_out = timed_out & ~terminated & ~cut_off
        self._lives = lives
        self._tracer.advance(frames)
        ended = terminated | cut_off
        if ended.any():
            self._episodes = self._episodes + ended * len(ended)
            self._reset(ended)
        return Outcome(np.where(cut_off, 0, rewards).astype(np.float32), life_lost, terminated, cut_off)

    def restore(self, histories: list[LaneHistory]) -> None:
        """Bring every lane to where its history leads, by playing it again.

        Lanes with shorter histories begin later, so that all arrive together.
        """
        self._episodes = np.array([history.episode for history in histories], dtype=np.int64)
        lengths = np.array([len(history.actions) for history in histories])
        longest = int(lengths.max())
        script = np.zeros((longest, len(histories)), np.int64)
        for lane, history in enumerate(histories):
            script[longest - len(history.actions) :, lane] = history.actions
        self._timed_out = np.zeros(len(histories), bool)
        self._lives = np.zeros(len(histories), np.int64)
        self._reset(np.ones(len(histories), bool))
        for step in range(longest):
            frames, _, terminated, self._timed_out, self._lives = self._games.step(script[step])
            self._tracer.advance(frames)
            # Lanes that still wait play on unseen, and start afresh where they end or where it is time.
            begin = lengths == longest - step - 1
            waiting = (terminated | self._timed_out) & (lengths < longest - step)
            if (begin | waiting).any():
                self._reset(begin | waiting)

    def close(self) -> None:
        """End the games' threads."""
        self._games.env.close()

    def _reset(self, mask: np.ndarray) -> None:
        frames, lives = self._games.reset(mask, episode_seeds(self._seed, self._episodes[mask]))
        self._tracer.reset(frames, mask)
        self._lives = np.where(mask, lives, self._lives)
        self._timed_out = self._timed_out & ~mask


def action_names(game: str) -> list[str]:
    """The names of a game's actions, in order."""
    with_screen: Any = gymnasium.make(game, disable_env_checker=True)
    names: list[str] = with_screen.unwrapped.get_action_meanings()
    with_screen.close()
    return names


def _open_games(game: str, lanes: int, frames_limit: int, threads: int) -> _Games:
    if game.startswith("ALE/"):
        return _NativeGames(game, lanes, frames_limit, threads)
    return _GymnasiumGames(game, lanes, frames_limit)


class _Games(ABC):
    """Games that reset the lanes of a mask with given seeds.

    Left alone, a game that ended would restart at the next step with a seed of its own.
    """

    env: gymnasium.vector.VectorEnv[Any, Any, Any]

    @property
    def actions(self) -> int:
        return int(self.env.single_action_space.n)  # type: ignore[attr-defined]

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Frames (L, 105, 80), rewards, terminated, timed out and lives (L,) after `actions` (L,)."""
        observations, rewards, terminated, truncated, info = self.env.step(actions.astype(np.int64))
        return self.frames(observations), rewards, terminated, truncated, np.array(info["lives"])

    @abstractmethod
    def reset(self, mask: np.ndarray, seeds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Reset the lanes in `mask` (L,), one seed for each; frames and lives of all lanes."""

    @abstractmethod
    def frames(self, observations: np.ndarray) -> np.ndarray:
        """Observations as frames (L, 105, 80) uint8."""


class _NativeGames(_Games):
    """ale-py's own vectorization: threads without Python, frames made small in C++."""

    def __init__(self, game: str, lanes: int, frames_limit: int, threads: int) -> None:
        self.env = gymnasium.make_vec(
            game,
            num_envs=lanes,
            vectorization_mode="vector_entry_point",
            num_threads=min(threads, lanes),
            img_height=STATE_HEIGHT,
            img_width=STATE_WIDTH,
            max_num_frames_per_episode=frames_limit,
            stack_num=1,
            maxpool=False,
            noop_max=0,
            reward_clipping=False,
            use_fire_reset=False,
        )
        self._started = False

    def reset(self, mask: np.ndarray, seeds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        options = {"reset_mask": mask} if self._started else None
        assert self._started or mask.all()
        self._started = True
        observations, info = self.env.reset(seed=seeds, options=options)  # type: ignore[arg-type]
        return self.frames(observations), np.array(info["lives"])

    def frames(self, observations: np.ndarray) -> np.ndarray:
        return observations[:, 0]


class _GymnasiumGames(_Games):
    """Gymnasium's ordinary vectorization, for games whose frame skip is drawn at random."""

    def __init__(self, game: str, lanes: int, frames_limit: int) -> None:
        def make() -> gymnasium.Env[Any, Any]:
            return gymnasium.make(
                game, obs_type="grayscale", max_num_frames_per_episode=frames_limit, disable_env_checker=True
            )

        self.env = SyncVectorEnv([make] * lanes, copy=False)
        self._lives = np.zeros(lanes, np.int64)

    def reset(self, mask: np.ndarray, seeds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        all_seeds: list[int | None] = [None] * len(mask)
        for lane, seed in zip(np.flatnonzero(mask), seeds, strict=True):
            all_seeds[lane] = int(seed)
        observations, info = self.env.reset(seed=all_seeds, options={"reset_mask": mask})
        self._lives = np.where(mask, info["lives"], self._lives)
        return self.frames(observations), self._lives

    def frames(self, observations: np.ndarray) -> np.ndarray:
        return small_frames(observations)
