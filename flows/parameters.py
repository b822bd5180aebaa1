"""Parameters of the flows: their JSON schema for the form in the Prefect UI, their validation, and their meaning."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema

from dqn.config import DEFAULT_STATES, FieldError, TrainConfig, make_config
from dqn.config_file import read_fields, without_format
from dqn.envs.games import GameSettings, game_names
from dqn.hardware import resolve

Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Name = Annotated[str, Field(min_length=1, max_length=200)]
# Two enums, because the server's error about a value that is not in a single enum prints all of its names.
_GAMES = [
    {"type": "string", "title": title, "enum": [name for name in game_names() if name.startswith("ALE/") == new]}
    for title, new in (("new", True), ("old", False))
]
Game = Annotated[str, WithJsonSchema({"type": "string", "anyOf": _GAMES})]

_SEPARATE = ("game", "seed")  # fields of the configuration that are parameters of their own


def _check(value: Any) -> Any:
    """Raise a ValueError if the configuration would refuse these fields."""
    if isinstance(value, dict):
        for name in _SEPARATE:
            if name in value:
                raise ValueError(f"{name} is a parameter of its own; leave it out of overrides")
        make_config("fast", value)
    return value


def _schema() -> dict[str, Any]:
    """The JSON schema of all other fields of the configuration, without defaults."""
    fields = TrainConfig.model_json_schema()["properties"]
    schedule = {"type": ["string", "number"], "examples": ["1:0.1:1000000", "0.5"]}
    properties = {}
    for name, field in fields.items():
        if name in _SEPARATE:
            continue
        without_default = {key: value for key, value in field.items() if key not in ("default", "$ref")}
        properties[name] = {**without_default, **(schedule if "$ref" in field else {})}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _check_config(value: Any) -> Any:
    """Raise a ValueError if the mapping could not be a configuration file."""
    if isinstance(value, dict):
        make_config("fast", without_format(value, "config"))
    return value


Overrides = Annotated[dict[str, Any], BeforeValidator(_check), WithJsonSchema(_schema())]
Tags = Annotated[dict[str, str], WithJsonSchema({"type": "object", "additionalProperties": {"type": "string"}})]
Config = Annotated[dict[str, Any], BeforeValidator(_check_config), WithJsonSchema({"type": "object"})]


@dataclass(frozen=True)
class Target:
    """When a run is finished: after a number of states, or after a number of cycles. The other number is 0."""

    states: int = 0
    cycles: int = 0

    @classmethod
    def of(cls, states: int | None, cycles: int | None) -> Target | None:
        """The target of the flow's parameters, or None if neither is given.

        Raises:
            ValueError: both are given, or one is not positive.
        """
        for name, value in (("states", states), ("cycles", cycles)):
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        if states is not None and cycles is not None:
            raise ValueError("give states or cycles, not both")
        return cls(states or 0, cycles or 0) if states or cycles else None

    @classmethod
    def parse(cls, text: str) -> Target:
        """The inverse of `str`; the default target for any other text."""
        found = re.fullmatch(r"(states|cycles)=([1-9]\d{0,17})", text, re.ASCII)
        return cls(**{found[1]: int(found[2])}) if found else cls(states=DEFAULT_STATES)

    def __str__(self) -> str:
        return f"states={self.states}" if self.states else f"cycles={self.cycles}"

    def fraction(self, states: float, cycles: float) -> float:
        """The share of the target that is done; 1 or more when it is reached."""
        return states / self.states if self.states else cycles / self.cycles


def config_from_file(path: Path, preset: str = "fast") -> dict[str, Any]:
    """The fields in a configuration file, each of which is checked.

    Args:
        path: of the file.
        preset: recipe whose fields the file replaces.

    Raises:
        ValueError: the file cannot be read, or something in it is wrong. The message is one line with file and line.
    """
    try:
        found = read_fields(path.read_text(), str(path))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ValueError(f"cannot read the configuration {path}: {reason}") from None
    try:
        make_config(preset, found.fields)
    except FieldError as error:
        line = found.lines.get(error.field)
        raise ValueError(f"{path}{f', line {line}' if line else ''}: {error}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return found.fields


def requested_settings(
    config: dict[str, Any] | None, game: str | None, seed: int | None, overrides: dict[str, Any] | None
) -> dict[str, Any]:
    """All fields of the configuration that were given, in one mapping. Those of `config` are replaced by the others."""
    separate = {"game": game, "seed": seed}
    given = {field: value for field, value in separate.items() if value is not None}
    return {**without_format(config or {}, "config"), **(overrides or {}), **given}


def requested_config(
    preset: str | None, settings: dict[str, Any], resolved: Callable[[TrainConfig], TrainConfig] = resolve
) -> TrainConfig:
    """The configuration of a preset with `settings`, with every `auto` replaced by `resolved`.

    Raises:
        ValueError: a field is unknown or has an invalid value.
    """
    config = make_config(preset or "fast", settings)
    GameSettings.of(config)  # raises a ValueError
    return resolved(config)


def learning_rate_note(config: TrainConfig, target: Target | None) -> str:
    """A line about a learning rate that does not reach its end before the training does; empty if it does."""
    rate, states = config.learning_rate, target.states if target else 0
    if not states or rate.start == rate.end or states >= rate.states:
        return ""
    wanted = rate.model_copy(update={"states": states})
    return (
        f"the learning rate falls over {rate.states:,} states, and this training has {states:,}; "
        f"to let it end with the training: --set learning_rate={wanted}"
    )


def check_resume(preset: str | None, settings: dict[str, Any], name: str | None) -> None:
    """Raise a ValueError if a parameter is given that is fixed when a run starts."""
    fixed = [*settings, *(["preset"] if preset else []), *(["name"] if name else [])]
    if fixed:
        raise ValueError(f"a resumed run keeps its {', '.join(fixed)}; leave that out, or start a new run")
