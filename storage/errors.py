"""What goes wrong with things that are stored, in one clear line each."""

from __future__ import annotations


class StorageError(Exception):
    """Something stored is missing, broken or held by somebody else; the message says what to do."""


class UnreachableError(StorageError):
    """The MLflow store does not answer, or cannot write."""


class CorruptUnitError(StorageError):
    """A committed unit does not match its manifest; the message names the file."""


class NewerFormatError(StorageError):
    """A newer release wrote a file in a format that this release does not read; the message names the file."""


def one_line(error: Exception) -> str:
    """What to tell a person of an error."""
    if isinstance(error, StorageError):
        return str(error)
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}"
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else 'no details'}"
