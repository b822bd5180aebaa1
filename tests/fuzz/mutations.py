"""Changed files: bytes are damaged at random, and values in JSON, YAML and text are replaced by odd ones."""

from __future__ import annotations

import copy
import json
import random
import string
from typing import Any

ODD_VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1,
    3,
    2**31,
    2**63,
    2**64,
    10**30,
    0.5,
    -0.0,
    1e-320,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "0",
    "nan",
    "-1",
    "٣",  # a digit for str.isdigit
    "a",
    "\0",
    "\x1b[2J",  # clears a terminal
    "[red]",  # markup of rich
    "\ud800",  # cannot be encoded
    "../../../tmp/dqn-fuzz",
    "/etc/passwd",
    "file:///etc/passwd",
    "one\ntwo",
    "x" * 5_000,
    [],
    {},
    [[]],
    {"a": 1},
    [None] * 300,
]
ODD_TEXTS = [
    b"[" * 100_000,
    b'{"a":' * 50_000,
    b"9" * 5_000,
    b"1e999",
    b"null",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"&a [*a, *a]",
    b"!!python/object/apply:os.system ['true']",
    b"? [a]: b",
    b"\t",
    b"%YAML 9.9\n---\n",
    b"<<: 1",
]


def changed_bytes(data: bytes, draws: random.Random) -> bytes:
    """`data` with one to four changes: other bits or bytes, and pieces that are removed, repeated or inserted."""
    for _ in range(draws.randint(1, 4)):
        start = draws.randint(0, len(data))
        length = min(draws.choice([1, 1, 2, 8, 100]), len(data) - start)
        piece = data[start : start + length]
        match draws.randrange(7):
            case 0:  # one other bit
                piece = bytes([piece[0] ^ 1 << draws.randrange(8)]) + piece[1:] if piece else b"\0"
            case 1:
                piece = draws.randbytes(length)
            case 2:
                piece = b""
            case 3:
                piece = piece * draws.choice([2, 3, 1000])
            case 4:
                piece = draws.choice(ODD_TEXTS)
            case 5:
                data, piece = data[:start], b""
            case 6:
                piece = draws.choice(string.printable).encode() * length
        data = data[:start] + piece + data[start + length :]
    return data


def changed_json(data: bytes, draws: random.Random) -> bytes:
    """The JSON `data` with one to three values replaced, removed, renamed or repeated."""
    try:
        content = json.loads(data)
    except ValueError:
        return changed_bytes(data, draws)
    for _ in range(draws.randint(1, 3)):
        places = list(_places(content))
        if not places:
            return json.dumps(draws.choice(ODD_VALUES)).encode()
        parent, key = draws.choice(places)
        _change(parent, key, draws)
    text = json.dumps(content)
    if draws.random() < 0.1:  # values that json.dumps cannot write
        text = text.replace("1", draws.choice(["9" * 5_000, "1e999", "[" * 2_000, '{"1":']), 1)
    return text.encode(errors="surrogatepass")


def _change(parent: Any, key: Any, draws: random.Random) -> None:
    match draws.randrange(5):
        case 0 | 1:
            parent[key] = copy.deepcopy(draws.choice(ODD_VALUES))
        case 2:
            del parent[key]
        case 3:
            value = parent[key]
            if isinstance(value, int | float) and not isinstance(value, bool):
                parent[key] = draws.choice(
                    [-value, value + 1, value * 10**6, value * 10**8, str(value), [value], float(value)]
                )
            else:
                parent[key] = [value]
        case 4:
            if isinstance(parent, dict):
                parent[draws.choice(["", "format", "a", "\x1b[2J", str(key).upper()])] = parent.pop(key)
            else:
                parent.append(copy.deepcopy(parent[key]))


def _places(content: Any) -> Any:
    """Every value below `content`, as its parent and its key or index."""
    for key in list(content) if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ():
        yield content, key
        yield from _places(content[key])


def changed_safetensors(data: bytes, draws: random.Random) -> bytes:
    """A safetensors file with another header, another length of its header, or other bytes."""
    length = int.from_bytes(data[:8], "little")
    header, tensors = data[8 : 8 + length], data[8 + length :]
    match draws.randrange(4):
        case 0:
            return changed_bytes(data, draws)
        case 1:
            return draws.choice([0, 1, length - 1, length + 1, 2**40, 2**64 - 1]).to_bytes(8, "little") + data[8:]
        case _:
            header = changed_json(header, draws)
            return len(header).to_bytes(8, "little") + header + tensors


def changed_text(data: bytes, draws: random.Random) -> bytes:
    """A text of lines `name: value` with one to three lines changed."""
    lines = data.split(b"\n")
    for _ in range(draws.randint(1, 3)):
        line = draws.randrange(len(lines))
        name, colon, _value = lines[line].partition(b":")
        odd = str(draws.choice(ODD_VALUES)).encode(errors="surrogatepass")
        match draws.randrange(6):
            case 0 | 1:
                lines[line] = name + colon + b" " + draws.choice([odd, draws.choice(ODD_TEXTS)])
            case 2:
                del lines[line]
                lines = lines or [b""]
            case 3:
                lines.append(lines[line])
            case 4:
                lines[line] = changed_bytes(lines[line], draws)
            case 5:
                lines[line] = draws.choice([odd, b"seed", b"\xc3"]) + colon + _value
    return b"\n".join(lines)


def change(name: str, data: bytes, draws: random.Random) -> bytes:
    """The content `data` of the file `name`, changed as its format invites."""
    if draws.random() < 0.15:
        return changed_bytes(data, draws)
    if name.endswith(".json"):
        return changed_json(data, draws)
    if name.endswith(".safetensors"):
        return changed_safetensors(data, draws)
    if name.endswith((".yaml", ".txt", ".md")):
        return changed_text(data, draws)
    return changed_bytes(data, draws)
