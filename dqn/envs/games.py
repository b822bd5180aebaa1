"""Atari games by gymnasium id: their settings, names and actions."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from functools import cache
from typing import Any

import ale_py
import gymnasium

from dqn.config import TrainConfig, nearest

FRAME_SKIP = 4  # emulator frames of a step in a game with an id ALE/…

gymnasium.register_envs(ale_py)
ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)


@dataclass(frozen=True)
class GameSettings:
    """Settings of a game. Together with the actions taken, they determine every state and reward.

    Raises:
        ValueError: `game` is not the id of an Atari game, or has no `frame_pooling`.
    """

    game: str  # gymnasium id
    seed: int = 0  # the emulator seed of each episode is derived from it
    frames_limit: int = 108_000  # frames after which an episode is truncated
    full_action_set: bool = False  # use all 18 actions of the console
    noop_max: int = 0  # each episode starts with 0 to `noop_max` no-op actions
    stacked_frames: int = 0  # number of frames in a state; 0 means one frame and its motion trace
    frame_pooling: bool = False  # a frame is the maximum of the emulator's last two

    def __post_init__(self) -> None:
        check_game(self.game)
        if self.frame_pooling and not self.native:
            raise ValueError(f"{self.game} has no frame_pooling; use a game with an id ALE/…")

    @property
    def native(self) -> bool:
        """Whether ale-py has a vector environment of the game."""
        return self.game.startswith("ALE/")

    @classmethod
    def of(cls, config: TrainConfig, game: str | None = None, seed: int | None = None) -> GameSettings:
        """The settings of a run, with another `game` or `seed` if given."""
        return cls(
            game=game or config.game,
            seed=config.seed if seed is None else seed,
            frames_limit=config.episode_frames_limit,
            full_action_set=config.full_action_set,
            noop_max=config.noop_max,
            stacked_frames=config.state_channels if config.frame_stack else 0,
            frame_pooling=config.frame_pooling,
        )


def game_names() -> list[str]:
    """Sorted gymnasium ids of all Atari games whose observations are screens."""
    return sorted(
        name
        for name, spec in gymnasium.registry.items()
        if str(spec.entry_point).startswith("ale_py") and "-ram" not in name
    )


def check_game(game: str) -> None:
    """Raise a ValueError, which names similar ids, unless `game` is the id of an Atari game."""
    names = game_names()
    if game not in names:
        titles = {game_title(name): name for name in names if name.startswith("ALE/")}
        hint = nearest(game, names, titles) or "; use the gymnasium id of an Atari game, such as ALE/Breakout-v5"
        raise ValueError(f"unknown game {game!r}{hint}")


def game_title(game: str) -> str:
    """The title of a game, without prefix, variant and version: `Breakout` for ALE/Breakout-v5 and Breakout-v0."""
    return re.sub(r"(NoFrameskip|Deterministic)?-v\d+$", "", game.removeprefix("ALE/"))


def action_names(game: str, full_action_set: bool = False) -> list[str]:
    """The names of a game's actions, or of all 18 actions of the console, by action number."""
    return list(_action_names(game, full_action_set))


@cache  # because a game must be opened for it
def _action_names(game: str, full_action_set: bool) -> tuple[str, ...]:
    env: Any = make_game(game, full_action_space=full_action_set)
    names = tuple(env.unwrapped.get_action_meanings())
    env.close()
    return names


def make_game(game: str, **options: Any) -> gymnasium.Env[Any, Any]:
    """Open one game as a gymnasium environment; `options` are those of `gymnasium.make`."""
    with warnings.catch_warnings():
        # Gymnasium warns about the tutorial's Breakout-v0, which is used on purpose.
        warnings.filterwarnings("ignore", message=".*is out of date", category=DeprecationWarning)
        return gymnasium.make(game, disable_env_checker=True, **options)
