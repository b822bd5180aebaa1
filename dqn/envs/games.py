"""Atari games by name: which there are, and what actions they have."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from typing import Any

import ale_py
import gymnasium

from dqn.config import TrainConfig, nearest

gymnasium.register_envs(ale_py)
ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)


@dataclass(frozen=True)
class GameSettings:
    """What decides how a game is played, for given actions.

    Raises:
        ValueError: `game` is not the id of an Atari game.
    """

    game: str  # gymnasium id
    seed: int = 0  # from which the seed of every episode is derived
    frames_limit: int = 108_000  # frames after which an episode is truncated
    full_action_set: bool = False  # all 18 actions of the console
    noop_max: int = 0  # episodes start with 0 to `noop_max` no-op actions
    stacked_frames: int = 0  # frames of a state; 0 means one frame and its motion trace

    def __post_init__(self) -> None:
        check_game(self.game)

    @classmethod
    def of(cls, config: TrainConfig, game: str | None = None, seed: int | None = None) -> GameSettings:
        """The settings of a run, or the same for another `game` or `seed`."""
        return cls(
            game=game or config.game,
            seed=config.seed if seed is None else seed,
            frames_limit=config.episode_frames_limit,
            full_action_set=config.full_action_set,
            noop_max=config.noop_max,
            stacked_frames=config.state_channels if config.frame_stack else 0,
        )


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
        titles = {game_title(name): name for name in names if name.startswith("ALE/")}
        hint = nearest(game, names, titles) or "; an id looks like ALE/Breakout-v5"
        raise ValueError(f"unknown game {game!r}{hint}")


def game_title(game: str) -> str:
    """The bare name of a game: `Breakout` for ALE/Breakout-v5 and for Breakout-v0."""
    return re.sub(r"(NoFrameskip|Deterministic)?-v\d+$", "", game.removeprefix("ALE/"))


def action_names(game: str, full_action_set: bool = False) -> list[str]:
    """The names of a game's actions, or of all 18 of the console, in order."""
    one: Any = make_game(game, full_action_space=full_action_set)
    names: list[str] = one.unwrapped.get_action_meanings()
    one.close()
    return names


def make_game(game: str, **options: Any) -> gymnasium.Env[Any, Any]:
    """One game as a gymnasium environment; `options` are those of `gymnasium.make`."""
    with warnings.catch_warnings():
        # Gymnasium calls the tutorial's Breakout-v0 out of date. It is meant.
        warnings.filterwarnings("ignore", message=".*is out of date", category=DeprecationWarning)
        return gymnasium.make(game, disable_env_checker=True, **options)
