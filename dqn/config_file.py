"""Configuration files: YAML with one field of a configuration in each line."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import BaseModel

FORMAT = 1
MOST_CHARACTERS = 100_000  # a file of all fields has about 8,000

_PLAIN = re.compile(r"(?!(?i:yes|no|on|off|true|false|null|y|n)$)[A-Za-z][\w./-]*")  # text that any YAML reads as text


class ConfigFile(NamedTuple):
    """What a configuration file says, before the fields are checked."""

    fields: dict[str, Any]  # text, numbers and truth values by name
    lines: dict[str, int]  # line of each field, from 1


def read_fields(text: str, source: str) -> ConfigFile:
    """The fields in the text of a configuration file.

    Args:
        text: YAML 1.2: a mapping of names to single values, with the version of the `format`, if it has one.
        source: name of the file, for messages.

    Raises:
        ValueError: it is not such a mapping, or of a newer format. The message is one line with file and line.
    """
    found = read_mapping(text, source, "one field of the configuration in each line, such as: lanes: 64")
    fields: dict[str, Any] = {}
    lines: dict[str, int] = {}
    for name, value in found.items():
        line = line_of(found, (name,))
        if not isinstance(name, str) or not isinstance(value, str | int | float):
            raise ValueError(f"{source}, line {line}: {name} must have one value")
        fields[name], lines[name] = plain(value), line
    return ConfigFile(without_format(fields, f"{source}, line {lines.get('format', 1)}"), lines)


def read_mapping(text: str, source: str, what: str) -> Any:
    """The mapping in a text of YAML 1.2, in the types of the YAML library, which know their lines.

    Args:
        text: of the file.
        source: name of the file, for messages.
        what: what the file must have, for messages.

    Raises:
        ValueError: it is not such a mapping. The message is one line with file and line.
    """
    from ruamel.yaml import YAML  # imported here, because it takes 0.1 seconds
    from ruamel.yaml.comments import CommentedMap
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"{source} has {len(text):,} characters; at most {MOST_CHARACTERS:,} are read")
    try:
        found = YAML(typ="rt", pure=True).load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = " ".join(str(error.problem or error.context).split())
        raise ValueError(f"{source}, line {mark.line + 1 if mark else 1}: {problem}") from None
    except (YAMLError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise ValueError(f"{source} is not YAML: {(str(error) or type(error).__name__).splitlines()[0]}") from None
    if found is None:
        return CommentedMap()
    if not isinstance(found, CommentedMap):
        raise ValueError(f"{source} must have {what}")
    return found


def plain(value: Any) -> Any:
    """`value` of a YAML file without the types of the YAML library. A name that is a mapping becomes text."""
    if isinstance(value, Mapping):
        return {str(name) if isinstance(name, Mapping) else plain(name): plain(value[name]) for name in value}
    if isinstance(value, list):
        return [plain(part) for part in value]
    return next((kind(value) for kind in (bool, int, float, str) if isinstance(value, kind)), value)


def line_of(found: Any, path: Sequence[Any]) -> int:
    """Line, from 1, of the part of a YAML file at `path`, or of the nearest part that contains it.

    Args:
        found: what `read_mapping` returned.
        path: names in mappings and indices in lists, from the outside in.
    """
    line = 1
    for step in path:
        try:
            lines: Any = found.lc
            line = (lines.item if isinstance(found, list) else lines.key)(step)[0] + 1
            found = found[step]
        except (AttributeError, KeyError, IndexError, TypeError):
            return line
    return line


def without_format(fields: Mapping[str, Any], source: str) -> dict[str, Any]:
    """`fields` without the version of the format.

    Raises:
        ValueError: it is not a version that this release reads.
    """
    found = fields.get("format", FORMAT)
    if type(found) is not int or found < 1:
        raise ValueError(f"{source}: format is {found!r}; this version reads {FORMAT}")
    if found > FORMAT:
        raise ValueError(f"{source}: format is {found}; this version reads {FORMAT}: install a newer release")
    return {name: value for name, value in fields.items() if name != "format"}


def as_file(config: BaseModel, heading: str) -> str:
    """The text of a configuration file with all fields, each below its description."""
    parts = [f"# {heading}\nformat: {FORMAT}\n"]
    for name, value in config.model_dump(mode="json").items():
        description = type(config).model_fields[name].description or ""
        comment = textwrap.fill(description, 100, initial_indent="# ", subsequent_indent="# ")
        parts.append(f"{comment}\n{name}: {_as_text(value)}\n")
    return "\n".join(parts)


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) and _PLAIN.fullmatch(value) else json.dumps(value)
