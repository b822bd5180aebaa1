"""Vector environments of Atari games: ale-py's own, or gymnasium's for games that have none."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from ale_py.vector_env import AtariVectorEnv
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import MaxAndSkipObservation

from dqn.envs.games import FRAME_SKIP, GameSettings, make_game
from dqn.envs.observations import STATE_HEIGHT, STATE_WIDTH, small_frames


def open_games(settings: GameSettings, lanes: int, threads: int) -> Games:
    """Open `lanes` games that emulate on up to `threads` CPU threads; 0 means one for each core.

    Games with an id `ALE/…` use ale-py's vector environment. ale-py registers none for the other games, such as
    those with a random frame skip, which use gymnasium's on one thread.
    """
    if settings.native:
        return NativeGames(settings, lanes, threads)
    return GymnasiumGames(settings, lanes)


def open_screens(settings: GameSettings) -> Any:
    """Open one game whose observations are the emulator's color screens.

    It shows the same game as `Lanes` when it is reset with the same emulator seed and takes the same actions.

    Returns:
        An environment with observations (210, 160, 3) uint8, or for an id `ALE/…` a vector environment of one
        game, whose observations have leading axes of size 1.
    """
    if settings.native:
        return _make_native(settings, 1, num_threads=1, img_height=210, img_width=160, grayscale=False, maxpool=False)
    return _make_single(settings, "rgb")


def open_env(settings: GameSettings) -> gymnasium.Env[Any, Any]:
    """Open one game as a plain environment with gray screens (height, width) uint8, as `Player` takes them."""
    if settings.frame_pooling:
        return MaxAndSkipObservation(_make_single(settings, "grayscale", frameskip=1), FRAME_SKIP)
    return _make_single(settings, "grayscale")


def _make_native(settings: GameSettings, lanes: int, **options: Any) -> Any:
    """ale-py's vector environment with all preprocessing turned off, except what `options` configure."""
    return gymnasium.make_vec(
        settings.game,
        num_envs=lanes,
        vectorization_mode="vector_entry_point",
        max_num_frames_per_episode=settings.frames_limit,
        full_action_space=settings.full_action_set,
        autoreset_mode=AutoresetMode.SAME_STEP,
        stack_num=1,
        noop_max=0,
        reward_clipping=False,
        use_fire_reset=False,
        **options,
    )


def _make_single(settings: GameSettings, obs_type: str, **options: Any) -> gymnasium.Env[Any, Any]:
    """An environment of one game."""
    return make_game(
        settings.game,
        obs_type=obs_type,
        max_num_frames_per_episode=settings.frames_limit,
        full_action_space=settings.full_action_set,
        **options,
    )


class Games(ABC):
    """L games that reset themselves in the step that ends an episode, and that can be reset by mask."""

    env: gymnasium.vector.VectorEnv[Any, Any, Any]

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Take `actions` (L,) in all games.

        Returns:
            frames (L, 105, 80) uint8, rewards (L,), terminated (L,), truncated (L,) and lives (L,). The frame of a
            terminated game is the first one of its next episode. The frame of a truncated game is the last one of
            the truncated episode.
        """
        observations, rewards, terminated, truncated, info = self.env.step(actions.astype(np.int64))
        if truncated.any():
            observations = observations.copy()
            observations[truncated] = np.stack(info["final_obs"][truncated])
        return self.frames(observations), rewards, terminated, truncated, np.array(info["lives"])

    @abstractmethod
    def reset(self, mask: np.ndarray, seeds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Reset the games in `mask`.

        Args:
            mask: (L,) bool; at least one is True.
            seeds: one emulator seed for each game in `mask`; -1 continues the emulator's random numbers.

        Returns:
            frames (L, 105, 80) uint8 and lives (L,), which are valid for the games in `mask` only.
        """

    @abstractmethod
    def frames(self, observations: np.ndarray) -> np.ndarray:
        """Convert observations of `env` to frames (L, 105, 80) uint8."""


class NativeGames(Games):
    """ale-py's vector environment, which emulates, converts to gray and resizes in C++ threads."""

    env: AtariVectorEnv

    def __init__(self, settings: GameSettings, lanes: int, threads: int) -> None:
        self.env = _make_native(
            settings,
            lanes,
            num_threads=min(threads, lanes),
            img_height=STATE_HEIGHT,
            img_width=STATE_WIDTH,
            maxpool=settings.frame_pooling,
        )
        self._started = False

    def reset(self, mask: np.ndarray, seeds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Games.reset`; the first reset must include all games."""
        options = {"reset_mask": mask} if self._started else None
        assert self._started or mask.all()
        self._started = True
        observations, info = self.env.reset(seed=seeds, options=options)
        return self.frames(observations), np.array(info["lives"])

    def frames(self, observations: np.ndarray) -> np.ndarray:
        """Drop the axis of stacked frames of observations (L, 1, 105, 80)."""
        return observations[:, 0]


class GymnasiumGames(Games):
    """Gymnasium's vector environment, for games without a vector environment of ale-py."""

    env: SyncVectorEnv[Any, Any]

    def __init__(self, settings: GameSettings, lanes: int) -> None:
        make = partial(_make_single, settings, "grayscale")
        self.env = SyncVectorEnv([make] * lanes, copy=False, autoreset_mode=AutoresetMode.SAME_STEP)

    def reset(self, mask: np.ndarray, seeds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Games.reset`."""
        all_seeds: list[int | None] = [None] * len(mask)
        for lane, seed in zip(np.flatnonzero(mask), seeds, strict=True):
            all_seeds[lane] = int(seed) if seed >= 0 else None
        observations, info = self.env.reset(seed=all_seeds, options={"reset_mask": mask})
        return self.frames(observations), np.array(info["lives"])

    def frames(self, observations: np.ndarray) -> np.ndarray:
        """Resize gray observations (L, 210, 160)."""
        return small_frames(observations)
