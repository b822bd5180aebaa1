"""Errors of storage. The message of each is one line."""

from __future__ import annotations


class StorageError(Exception):
    """Something stored is missing, corrupt or locked; the message says what to do."""


class UnreachableError(StorageError):
    """The MLflow store does not answer, or cannot write."""


class CorruptUnitError(StorageError):
    """A committed unit does not match its manifest; the message names the file."""


class NewerFormatError(StorageError):
    """A newer release wrote a file in a format that this release does not read; the message names the file."""


def one_line(error: Exception) -> str:
    """An error as one line for the command line."""
    if isinstance(error, StorageError):
        return str(error)
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}"
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else 'no details'}"
