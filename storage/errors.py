"""What goes wrong with things that are stored, in one clear line each."""

from __future__ import annotations


class StorageError(Exception):
    """Something stored is missing, broken or held by somebody else; the message says what to do."""


class UnreachableError(StorageError):
    """The MLflow store does not answer, or cannot write."""


class CorruptUnitError(StorageError):
    """A committed unit does not match its manifest; the message names the file."""
