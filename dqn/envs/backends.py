"""Vectorized games: ale-py's own vectorization, or gymnasium's for games with a random frame skip."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from ale_py.vector_env import AtariVectorEnv
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from dqn.envs.games import GameSettings, make_game
from dqn.envs.observations import STATE_HEIGHT, STATE_WIDTH, small_frames


def _make_native(settings: GameSettings, lanes: int, **options: Any) -> Any:
    """ale-py's own vectorization, with nothing done to a game but frame skipping."""
    return gymnasium.make_vec(
        settings.game,
        num_envs=lanes,
        vectorization_mode="vector_entry_point",
        max_num_frames_per_episode=settings.frames_limit,
        full_action_space=settings.full_action_set,
        autoreset_mode=AutoresetMode.SAME_STEP,
        stack_num=1,
        maxpool=False,
        noop_max=0,
        reward_clipping=False,
        use_fire_reset=False,
        **options,
    )


def _make_single(settings: GameSettings, obs_type: str) -> gymnasium.Env[Any, Any]:
    return make_game(
        settings.game,
        obs_type=obs_type,
        max_num_frames_per_episode=settings.frames_limit,
        full_action_space=settings.full_action_set,
    )


def open_screens(settings: GameSettings) -> Any:
    """One game in colour, as an environment of its own: the same seed and actions show what `Lanes` played.

    Observations of a game ALE/… have a leading lane; see `dqn.plots.recording`.
    """
    if settings.game.startswith("ALE/"):
        return _make_native(settings, 1, num_threads=1, img_height=210, img_width=160, grayscale=False)
    return _make_single(settings, "rgb")


def open_games(settings: GameSettings, lanes: int, threads: int) -> Games:
    """Games by ale-py's own vectorization where it has the game, which is for ids ALE/…, else by gymnasium's."""
    if settings.game.startswith("ALE/"):
        return NativeGames(settings, lanes, threads)
    return GymnasiumGames(settings, lanes)


class Games(ABC):
    """Games that begin anew within the step that ends them, and whose lanes are reset by mask."""

    env: gymnasium.vector.VectorEnv[Any, Any, Any]

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Frames (L, 105, 80), rewards, terminated, timed out and lives (L,) after `actions` (L,).

        The frame is the next episode's first where one terminated, and its own last where one timed out.
        """
        observations, rewards, terminated, truncated, info = self.env.step(actions.astype(np.int64))
        if truncated.any():
            observations = observations.copy()
            observations[truncated] = np.stack(info["final_obs"][truncated])
        return self.frames(observations), rewards, terminated, truncated, np.array(info["lives"])

    @abstractmethod
    def reset(self, mask: np.ndarray, seeds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Reset the lanes in `mask` (L,), one seed for each or -1; frames and lives, true for those lanes."""

    @abstractmethod
    def frames(self, observations: np.ndarray) -> np.ndarray:
        """Observations as frames (L, 105, 80) uint8."""


class NativeGames(Games):
    """ale-py's own vectorization: threads without Python, frames made small in C++."""

    env: AtariVectorEnv

    def __init__(self, settings: GameSettings, lanes: int, threads: int) -> None:
        self.env = _make_native(
            settings, lanes, num_threads=min(threads, lanes), img_height=STATE_HEIGHT, img_width=STATE_WIDTH
        )
        self._started = False

    def reset(self, mask: np.ndarray, seeds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Games`; the first reset must be of all lanes."""
        options = {"reset_mask": mask} if self._started else None
        assert self._started or mask.all()
        self._started = True
        observations, info = self.env.reset(seed=seeds, options=options)
        return self.frames(observations), np.array(info["lives"])

    def frames(self, observations: np.ndarray) -> np.ndarray:
        """Observations (L, 1, 105, 80) without their axis of stacked frames."""
        return observations[:, 0]


class GymnasiumGames(Games):
    """Gymnasium's ordinary vectorization, for games whose frame skip is drawn at random."""

    env: SyncVectorEnv[Any, Any]

    def __init__(self, settings: GameSettings, lanes: int) -> None:
        make = partial(_make_single, settings, "grayscale")
        self.env = SyncVectorEnv([make] * lanes, copy=False, autoreset_mode=AutoresetMode.SAME_STEP)

    def reset(self, mask: np.ndarray, seeds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Games`."""
        all_seeds: list[int | None] = [None] * len(mask)
        for lane, seed in zip(np.flatnonzero(mask), seeds, strict=True):
            all_seeds[lane] = int(seed) if seed >= 0 else None
        observations, info = self.env.reset(seed=all_seeds, options={"reset_mask": mask})
        return self.frames(observations), np.array(info["lives"])

    def frames(self, observations: np.ndarray) -> np.ndarray:
        """Gray observations (L, 210, 160) at a quarter of their size."""
        return small_frames(observations)
