"""What a sweep searches: its file, which is checked before anything is trained."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from dqn.config import DEFAULT_STATES, FieldError, TrainConfig, make_config, nearest
from dqn.config_file import line_of, plain, read_mapping, without_format
from dqn.envs.games import GameSettings
from dqn.schedules import LinearSchedule
from flows.parameters import Seed

MOST_COMBINATIONS = 10_000
OPTIONS = ("preset", "states", "cycles")  # options of `dqn train` in `base` that are not fields of the configuration

Value = bool | int | float | str
Where = tuple[str | int, ...]  # a part of a sweep's file: names and indices from the outside in


def _listed(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Choices(_Part):
    """A field that has one of these values."""

    choices: list[Value] = Field(min_length=1, max_length=1000)


class Range(_Part):
    """A field that has a number from `low` to `high`, both included."""

    low: int | float
    high: int | float
    log: bool = Field(False, description="Draw the logarithm of the number evenly.")


class Prune(_Part):
    """When a trial ends early: after any of these numbers of states, if it is not among the best share so far."""

    after_states: Annotated[list[Annotated[int, Field(ge=1)]], BeforeValidator(_listed), Field(min_length=1)]
    keep: float = Field(0.5, gt=0, lt=1, description="Share of the trials that go on.")


class Sweep(_Part):
    """A search for the configuration with the highest objective.

    A trial is a configuration that is tried, by one training for each of the `seeds`. Without `search` and `grid` there
    is one trial, which is `base`.
    """

    name: str = Field(
        pattern=r"^[A-Za-z0-9][\w.-]{0,99}$",
        description="Name of the sweep: letters, digits, and . _ - after the first. Started again, it goes on.",
    )
    base: dict[str, Value] = Field({}, description="Options of `dqn train` and fields of the configuration.")
    search: dict[str, Choices | Range] | None = Field(None, description="Fields whose values a sampler chooses.")
    grid: dict[str, list[Value]] | None = Field(None, description="Fields whose values are all combined.")
    trials: int | None = Field(None, ge=1, le=MOST_COMBINATIONS, description="Number of trials of a search.")
    seeds: list[Seed] = Field([0], min_length=1, max_length=100, description="Every trial is trained with each.")
    objective: Literal["score/mean_100", "score/mean_30", "evaluation/mean"] = Field(
        "score/mean_100", description="Metric of a run after its last state. The mean over the seeds is maximized."
    )
    prune: Prune | None = Field(None, description="When a trial ends early.")
    parallel: int = Field(1, ge=1, le=1000, description="Number of trainings at the same time.")
    threads: int | None = Field(None, ge=1, le=1024, description="Number of CPU threads of each training.")
    sampler: Literal["tpe", "random"] = Field("tpe", description="How a search chooses the next trial.")
    sampler_seed: Seed = Field(0, description="Seed of the sampler.")

    @property
    def fields(self) -> list[str]:
        """The fields that differ between trials, with a part of a schedule as `learning_rate.start`."""
        return list(self.search or self.grid or {})

    @property
    def game(self) -> str:
        """Gymnasium id of the game."""
        return self.config({}).game

    @property
    def target(self) -> dict[str, int]:
        """The target of every training, as a parameter of the flow `train`."""
        name = "cycles" if "cycles" in self.base else "states"
        return {name: int(self.base.get(name, DEFAULT_STATES))}

    def combinations(self) -> list[dict[str, Value]]:
        """The trials of a grid, in the order of the file; the last field changes fastest."""
        grid = self.grid or {}
        return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]

    def settings(self, params: Mapping[str, Value]) -> dict[str, Any]:
        """The fields of the configuration of a trial, on top of the preset.

        Raises:
            ValueError: a part of a schedule is out of range.
        """
        fields = {name: value for name, value in self.base.items() if name not in OPTIONS}
        if self.threads is not None:
            fields["threads"] = self.threads
        fields |= {name: value for name, value in params.items() if "." not in name}
        config = make_config(self.preset, fields)
        for name, value in params.items():
            field, dot, part = name.partition(".")
            if dot:
                schedule = LinearSchedule.model_validate(fields.get(field, getattr(config, field)))
                fields[field] = str(LinearSchedule.model_validate({**dict(schedule), part: value}))
        return fields

    def config(self, params: Mapping[str, Value]) -> TrainConfig:
        """The configuration of a trial.

        Raises:
            ValueError: the values do not fit together. The message is one line.
        """
        return make_config(self.preset, self.settings(params))

    @staticmethod
    def is_integer(name: str) -> bool:
        """Whether a searched field, or part of a schedule, is an integer."""
        field, _, part = name.partition(".")
        return _number_type(field, part) is int

    @property
    def preset(self) -> str:
        """The recipe that `base` starts from."""
        return str(self.base.get("preset", "fast"))

    def fixed(self) -> dict[str, Any]:
        """The parts that cannot change once a sweep has trials."""
        return self.model_dump(mode="json", exclude={"trials", "parallel"})


def _number_type(field: str, part: str) -> type | None:
    """The type of a field, or of a part of a schedule; None if it is not one number."""
    annotation = TrainConfig.model_fields[field].annotation
    if annotation is LinearSchedule and part in LinearSchedule.model_fields:
        annotation = LinearSchedule.model_fields[part].annotation
    if annotation is int:
        return int
    return float if annotation is float else None


class _Problem(Exception):
    """What is wrong with a part of a sweep's file."""

    def __init__(self, where: Where, message: str) -> None:
        super().__init__(message)
        self.where = where


def read_sweep(path: Path) -> Sweep:
    """The sweep in a YAML file.

    Raises:
        ValueError: the file cannot be read, or something in it is wrong. The message is one line with file and line.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ValueError(f"cannot read the sweep {path}: {reason}") from None
    found = read_mapping(text, str(path), "the parts of a sweep, such as: name: first")
    return check_sweep(plain(found), lambda where: f"{path}, line {line_of(found, where)}")


def check_sweep(content: Mapping[str, Any], source: Callable[[Where], str] = lambda where: "sweep") -> Sweep:
    """The sweep that `content` describes.

    Args:
        content: the parts of its file by name.
        source: name of the file, with the line of a part.

    Raises:
        ValueError: something in it is wrong. The message is one line.
    """
    content = without_format(content, source(("format",)))
    try:
        for name in content:
            if name not in Sweep.model_fields:
                raise _Problem((name,), f"unknown part {name!r}{nearest(str(name), Sweep.model_fields)}")
        sweep = _validated(content)
        for check in (_check_base, _check_search, _check_grid, _check_seeds, _check_prune):
            check(sweep)
    except _Problem as problem:
        raise ValueError(f"{source(problem.where)}: {problem}") from None
    return sweep


def _validated(content: Mapping[str, Any]) -> Sweep:
    """The sweep of `content`, whose parts have the right types."""
    for name, values in dict(_mapping(content, "search")).items():
        if not isinstance(values, dict):
            shown = "a list" if isinstance(values, list) else repr(values)
            raise _Problem(("search", name), f"{name} is {shown}; write {{choices: [...]}} or {{low: ..., high: ...}}")
        kind = Choices if isinstance(values, dict) and "choices" in values else Range
        try:
            kind.model_validate(values)
        except ValidationError as error:
            raise _problem(error, ("search", name), kind) from None
    try:
        return Sweep.model_validate(content)
    except ValidationError as error:
        raise _problem(error, (), Sweep) from None


def _mapping(content: Mapping[str, Any], part: str) -> Mapping[str, Any]:
    found = content.get(part) or {}
    if not isinstance(found, dict):
        raise _Problem((part,), f"{part} must have one field in each line, such as: td_lambda: ...")
    return found


def _problem(error: ValidationError, where: Where, kind: type[BaseModel]) -> _Problem:
    """The first of the errors, in words of the file."""
    first = error.errors()[0]
    where = (*where, *(part for part in first["loc"] if not _is_type(part)))
    name = ".".join(map(str, where))
    if first["type"] == "missing":
        return _Problem(where, f"{name} is missing")
    if first["type"] == "extra_forbidden":
        known = (Prune if where[0] == "prune" else kind).model_fields
        return _Problem(where, f"unknown part {name!r}{nearest(str(where[-1]), known)}")
    message = first["msg"].removeprefix("Value error, ")
    described = Sweep.model_fields[str(where[0])].description
    return _Problem(where, f"{name} is {first['input']!r}: {message[0].lower()}{message[1:]} ({described})")


def _is_type(part: str | int) -> bool:
    """Whether a step in the location of an error is the type of a union instead of a part of the file."""
    return part in ("bool", "int", "float", "str", "Choices", "Range")


def _check_base(sweep: Sweep) -> None:
    for name in sweep.base:
        if name in ("seed", "name", "resume"):
            raise _Problem(("base", name), f"{name} cannot be in base; a sweep has its own name and seeds")
        if name not in OPTIONS and name not in TrainConfig.model_fields:
            known = (*OPTIONS, *TrainConfig.model_fields)
            raise _Problem(("base", name), f"unknown field {name!r}{nearest(name, known)}")
    for name in ("states", "cycles"):
        value = sweep.base.get(name, 1)
        if type(value) is not int or value < 1:
            raise _Problem(("base", name), f"{name} is {value!r}; it must be an integer of at least 1")
    if "states" in sweep.base and "cycles" in sweep.base:
        raise _Problem(("base", "cycles"), "give states or cycles, not both")
    try:
        GameSettings.of(sweep.config({}))
    except FieldError as error:
        raise _Problem(("base", error.field), str(error)) from None
    except ValueError as error:
        raise _Problem(("base",), str(error)) from None


def _check_search(sweep: Sweep) -> None:
    if sweep.search is None:
        if sweep.trials is not None:
            raise _Problem(("trials",), "trials is given, but only a search needs that; leave it out")
        return
    if sweep.grid is not None:
        raise _Problem(("search",), "a sweep has either search or grid; leave one out")
    if not sweep.search:
        raise _Problem(("search",), "search is empty; give at least one field")
    if sweep.trials is None:
        raise _Problem(("search",), "trials is missing; it is the number of trials of the search")
    for name, values in sweep.search.items():
        where = ("search", name)
        if isinstance(values, Choices):
            _check_values(sweep, name, values.choices, (*where, "choices"))
            continue
        field, _, part = name.partition(".")
        _check_name(sweep, name, where)
        if _number_type(field, part) is None:
            raise _Problem(where, f"{name} is not one number, so it has no range; write {{choices: [...]}}")
        if values.low > values.high:
            raise _Problem((*where, "low"), f"{name}: low is {values.low}, above high, which is {values.high}")
        if values.log and values.low <= 0:
            raise _Problem((*where, "low"), f"{name}: low is {values.low}; with log it must be above 0")
        for end in ("low", "high"):
            _check_value(sweep, name, getattr(values, end), (*where, end))


def _check_grid(sweep: Sweep) -> None:
    if sweep.grid is None:
        return
    if not sweep.grid:
        raise _Problem(("grid",), "grid is empty; give at least one field")
    combinations = 1
    for name, values in sweep.grid.items():
        if not values:
            raise _Problem(("grid", name), f"{name} has no values")
        _check_values(sweep, name, values, ("grid", name))
        combinations *= len(values)
    if combinations > MOST_COMBINATIONS:
        raise _Problem(
            ("grid",), f"the grid has {combinations:,} combinations; at most {MOST_COMBINATIONS:,} are tried"
        )


def _check_values(sweep: Sweep, name: str, values: list[Value], where: Where) -> None:
    for index, value in enumerate(values):
        if any(type(value) is type(other) and value == other for other in values[:index]):
            raise _Problem((*where, index), f"{name} has {value!r} twice")
        _check_value(sweep, name, value, (*where, index))


def _check_name(sweep: Sweep, name: str, where: Where) -> None:
    """Check that there is a field, or a part of a schedule, that can be searched by this name."""
    field, dot, part = name.partition(".")
    if field in ("game", "seed", *OPTIONS):
        raise _Problem(where, f"{field} cannot be searched; only fields that change how a game is learned can")
    if field not in TrainConfig.model_fields:
        raise _Problem(where, f"unknown field {field!r}{nearest(field, TrainConfig.model_fields)}")
    if dot and TrainConfig.model_fields[field].annotation is not LinearSchedule:
        raise _Problem(where, f"{field} is no schedule, so it has no {part!r}")
    if dot and part not in LinearSchedule.model_fields:
        raise _Problem(where, f"{field} has no {part!r}; its parts are start, end and states")
    if not dot and any(other.startswith(f"{field}.") for other in sweep.fields):
        raise _Problem(where, f"{field} is searched as a whole and in parts; choose one")


def _check_value(sweep: Sweep, name: str, value: Value, where: Where) -> None:
    """Check that a field can have a value, with everything else as in `base`."""
    _check_name(sweep, name, where[:2])
    field = name.partition(".")[0]
    try:
        sweep.settings({name: value})
    except FieldError as error:
        raise _Problem(where if error.field == field else where[:2], str(error)) from None
    except ValidationError as error:
        first = error.errors()[0]
        raise _Problem(where, f"{name} is {value!r}: {first['msg'][0].lower()}{first['msg'][1:]}") from None
    except ValueError:
        pass  # it may fit to the other values of a trial, which is checked when the trial is proposed


def _check_seeds(sweep: Sweep) -> None:
    for index, seed in enumerate(sweep.seeds):
        if seed in sweep.seeds[:index]:
            raise _Problem(("seeds", index), f"seed {seed} is given twice")


def _check_prune(sweep: Sweep) -> None:
    if sweep.prune is None:
        return
    if "cycles" in sweep.base:
        raise _Problem(("prune",), "prune counts states, so base must have states instead of cycles")
    points = [*sweep.prune.after_states, int(sweep.base.get("states", DEFAULT_STATES))]
    for index, (before, after) in enumerate(itertools.pairwise(points)):
        if before >= after:
            raise _Problem(
                ("prune", "after_states"),
                f"after_states is {points[index]:,}; it must be below the next number, which is {after:,}",
            )
