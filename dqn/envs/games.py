"""Atari games by name: which there are, and what actions they have."""

from __future__ import annotations

import re
import warnings
from typing import Any

import ale_py
import gymnasium

from dqn.config import nearest

gymnasium.register_envs(ale_py)
ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)


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
