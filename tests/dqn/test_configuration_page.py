"""Two pages are generated from the code by `python -m tests.dqn.test_configuration_page`.

They are docs/configuration.md, the fields, and docs/configuration-choices.md, what values are for that no preset has.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from dqn.config import TrainConfig, make_config
from dqn.schedules import LinearSchedule

DOCS = Path(__file__).parents[2] / "docs"

INTRODUCTION = """# Configuration

All fields of `TrainConfig` ([dqn/config.py](../dqn/config.py)), with their values in both presets; one value means that
both presets have it. Replace a value by `dqn train --set FIELD=VALUE`, or in Prefect by the parameter `overrides`.
`dqn config RUN` and `dqn config --preset fast` print all fields with their descriptions as a YAML file, for `dqn train
--config FILE`; such a file may also name only some fields. In Prefect the parameter `config` is such a mapping. A
schedule is one number, or `start:end:states`: the value changes linearly from start to end over that number of states
and then stays at end. [Choices that no preset makes](configuration-choices.md) lists what the other values are for.

"""

CHOICES_INTRODUCTION = """# Choices that no preset makes

What each choice is for, and whether a training to the end of its learning rate schedule has used it. The fields are
described in [Configuration](configuration.md), what was tested in [Recipes](recipes.md), and the scores in
[Results](results.md). The studies are in [benchmarks/studies](../benchmarks/studies). Tests check each choice
against its formula.
"""

NOT_TRIED = "not tried in a full training"

# A field, or one of its values, that neither preset uses: what it is for, and whether it was tried in a full training.
CHOICES = {
    "network=nature": ("Comparison with published DQN results.", "studies `nature`, `nature-one-epoch`"),
    "network=nips": ("A third less time for a state than `nature`.", f"{NOT_TRIED}; one run of 1.6 million states"),
    "network=small": ("A smaller network, an exercise of the tutorial; short runs and tests.", NOT_TRIED),
    "sweep=ebu": ("The tutorial's sweep with a diffusion factor.", NOT_TRIED),
    "sweep=watkins": ("λ-returns that are cut at actions which are not greedy.", NOT_TRIED),
    "optimizer=adam": ("The most common optimizer, also for comparison with published results.", NOT_TRIED),
    "max_epochs=2": ("More optimizer steps for each state.", "studies `two-epochs`, `nature`, `pong`, `qbert`"),
    "reward_clip=0": (
        "Unclipped rewards, an exercise of the tutorial.",
        f"{NOT_TRIED}; `reward_clip=10` for 1.6 million states",
    ),
    "rescale_values": ("Unclipped rewards of different sizes in one loss.", NOT_TRIED),
    "adapt_learning_rate": ("A learning rate that follows the loss; requires two epochs.", NOT_TRIED),
    "l2": ("Regularization.", NOT_TRIED),
    "dropout": ("Regularization.", NOT_TRIED),
    "frame_stack": ("States of stacked frames, as in published DQN results.", NOT_TRIED),
    "frame_pooling": (
        "Games with sprites that flicker, as in published DQN results.",
        "studies `battlezone`, `spaceinvaders`",
    ),
    "full_action_set": ("One set of actions for all games.", NOT_TRIED),
    "noop_max": ("Random starts of episodes, as in published DQN results.", NOT_TRIED),
    "midgame_lanes": ("Starts from saved states, an exercise of the tutorial.", NOT_TRIED),
    "replay_cycles": ("A replay memory of several cycles.", f"{NOT_TRIED}; 8 cycles for 0.41 million states"),
    "shards": ("Playing on several machines of a cluster.", NOT_TRIED),
    "optimizer_processes": ("Optimization on several GPUs.", NOT_TRIED),
    "play_device=cpu": ("Playing on machines of a cluster without a GPU.", NOT_TRIED),
}


def pages() -> dict[str, str]:
    """The text of each page by the name of its file."""
    return {"configuration.md": fields_page(), "configuration-choices.md": choices_page()}


def fields_page() -> str:
    """The text of the page about the fields."""
    fast, tutorial = make_config("fast"), make_config("tutorial")
    lines = [INTRODUCTION + "\n".join(f"- [{title}](#{title.lower()})" for title, _ in groups())]
    for title, names in groups():
        lines += ["", f"## {title}", "", "| field | values | `fast`; `tutorial` | meaning |", "|---|---|---|---|"]
        for name in names:
            field = TrainConfig.model_fields[name]
            values = dict.fromkeys(text_of(getattr(config, name)) for config in (fast, tutorial))
            meaning = str(field.description).replace("|", r"\|")
            lines.append(f"| `{name}` | {allowed(field)} | {'; '.join(values)} | {meaning} |")
    return "\n".join(lines) + "\n"


def choices_page() -> str:
    """The text of the page about choices that no preset makes."""
    lines = [CHOICES_INTRODUCTION]
    lines += ["| choice | what it is for | full training |", "|---|---|---|"]
    lines += [f"| `{choice}` | {purpose} | {tried} |" for choice, (purpose, tried) in CHOICES.items()]
    return "\n".join(lines) + "\n"


def groups() -> Iterator[tuple[str, list[str]]]:
    """The headings that group the fields in the class, with the names of the fields below each."""
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
    """The type of a field's value, and its limits."""
    kind: Any = field.annotation
    if get_origin(kind) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(kind))
    names = {bool: "true, false", int: "whole number", float: "number", str: "text", LinearSchedule: "schedule"}
    signs = {"Ge": "from {}", "Gt": "above {}", "Le": "to {}", "Lt": "below {}"}
    limits = [signs[type(limit).__name__].format(*vars_of(limit)) for limit in field.metadata]
    return " ".join([names[kind], *limits])


def vars_of(limit: Any) -> list[str]:
    """The number of a limit, as text."""
    (number,) = (getattr(limit, name) for name in ("ge", "gt", "le", "lt") if hasattr(limit, name))
    return ["2^63" if number == 2**63 else f"{number:,}"]


def text_of(value: object) -> str:
    """A value as it is written on the command line."""
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def test_configuration_pages_match_the_code() -> None:
    for name, text in pages().items():
        assert (DOCS / name).read_text() == text, "run: python -m tests.dqn.test_configuration_page"


def test_every_field_is_in_a_group() -> None:
    assert [name for _, names in groups() for name in names] == list(TrainConfig.model_fields)


def test_choices_of_the_page_are_valid_and_not_defaults() -> None:
    """A choice without a value is a field that both presets leave at its default."""
    presets = [make_config("fast"), make_config("tutorial")]
    for choice in CHOICES:
        name, _, value = choice.partition("=")
        assert name in TrainConfig.model_fields
        if value:
            chosen = getattr(make_config("fast", {name: value}), name)
            assert chosen not in [getattr(config, name) for config in presets]
        else:
            assert {getattr(config, name) for config in presets} == {TrainConfig.model_fields[name].default}


if __name__ == "__main__":
    for name, text in pages().items():
        (DOCS / name).write_text(text)
