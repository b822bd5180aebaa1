"""Errors of storage. The message of each is one line."""

from __future__ import annotations

_MOST_CHARACTERS = 2_000  # of a message; names and values of a file may be longer


class StorageError(Exception):
    """Something stored is missing, corrupt or locked; the message says what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(as_line(message))


class UnreachableError(StorageError):
    """The MLflow store does not answer, or cannot write."""


class CorruptUnitError(StorageError):
    """A committed unit does not match its manifest; the message names the file."""


class NewerFormatError(StorageError):
    """A newer release wrote a file in a format that this release does not read; the message names the file."""


def as_line(text: str) -> str:
    """`text` as one line that a terminal shows as it is: control characters are escaped, and a long text is cut."""
    line = "".join(each if each.isprintable() else repr(each)[1:-1] for each in text.replace("\n", " "))
    half = _MOST_CHARACTERS // 2 - 2
    return line if len(line) <= _MOST_CHARACTERS else f"{line[:half]} … {line[-half:]}"


def first_problem(error: Exception) -> str:
    """The message of an error; of pydantic's only the first problem, after the field that has it."""
    from pydantic_core import ValidationError  # imported here, because `dqn --help` does not need it

    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


def one_line(error: Exception) -> str:
    """An error as one line for the command line."""
    if isinstance(error, StorageError):
        return str(error)
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}"
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else 'no details'}"
