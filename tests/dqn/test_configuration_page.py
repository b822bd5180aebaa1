"""docs/configuration.md says what the code says. `python -m tests.dqn.test_configuration_page` writes it anew."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from dqn.config import TrainConfig, make_config
from dqn.schedules import LinearSchedule

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"

INTRODUCTION = """# Configuration

Every field of `TrainConfig` (`dqn/config.py`), with its value in both presets. `dqn train --set FIELD=VALUE` replaces
one, in Prefect the parameter `overrides` does. A schedule is one number, or `start:end:states`: it goes from start to
end over so many states played, and stays there.
"""


def page() -> str:
    """The page, from the code."""
    fast, tutorial = make_config("fast"), make_config("tutorial")
    lines = [INTRODUCTION.rstrip()]
    for title, names in groups():
        lines += ["", f"## {title}", "", "| field | value | `fast` | `tutorial` | meaning |", "|---|---|---|---|---|"]
        for name in names:
            field = TrainConfig.model_fields[name]
            values = [text_of(getattr(config, name)) for config in (fast, tutorial)]
            values[1] = "same" if values[0] == values[1] else values[1]
            meaning = str(field.description).replace("|", r"\|")
            lines.append(f"| `{name}` | {allowed(field)} | {values[0]} | {values[1]} | {meaning} |")
    return "\n".join(lines) + "\n"


def groups() -> Iterator[tuple[str, list[str]]]:
    """The comments that group the fields, with the names below each."""
    title, names = "", []
    for line in inspect.getsource(TrainConfig).splitlines():
        if found := re.match(r"    # (.+)", line):
            if names:
                yield title, names
            title, names = found[1], []
        elif (found := re.match(r"    (\w+):", line)) and found[1] in TrainConfig.model_fields:
            names.append(found[1])
    yield title, names


def allowed(field: FieldInfo) -> str:
    """What kind of value a field takes, and its limits."""
    kind: Any = field.annotation
    if get_origin(kind) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(kind))
    names = {bool: "true, false", int: "whole number", float: "number", str: "text", LinearSchedule: "schedule"}
    signs = {"Ge": "from {}", "Gt": "above {}", "Le": "to {}", "Lt": "below {}"}
    limits = [signs[type(limit).__name__].format(*vars_of(limit)) for limit in field.metadata]
    return " ".join([names[kind], *limits])


def vars_of(limit: Any) -> list[str]:
    """The number in a limit."""
    (number,) = (getattr(limit, name) for name in ("ge", "gt", "le", "lt") if hasattr(limit, name))
    return ["2^63" if number == 2**63 else f"{number:,}"]


def text_of(value: object) -> str:
    """A value as one writes it."""
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def test_every_field_stands_on_the_page_as_the_code_has_it() -> None:
    assert PAGE.read_text() == page(), "write it anew: python -m tests.dqn.test_configuration_page"


def test_every_field_has_a_group() -> None:
    assert [name for _, names in groups() for name in names] == list(TrainConfig.model_fields)


if __name__ == "__main__":
    PAGE.write_text(page())
