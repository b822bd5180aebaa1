"""Versions of the formats in which this project stores files."""

from __future__ import annotations

from pathlib import Path

from storage.errors import CorruptUnitError, NewerFormatError


def check_format(found: object, address: Path | str, *, newest: int, oldest: int = 1) -> None:
    """Check that this release reads the format of a file.

    Args:
        found: the version of the format that the file at `address` names.
        address: path or URL of the file, for messages.
        newest: the version that this release writes, which is the newest one that it reads.
        oldest: the oldest version that it reads.

    Raises:
        NewerFormatError: a newer release wrote the file.
        CorruptUnitError: this release does not read that version.
    """
    reads = f"this version reads {newest if oldest == newest else f'{oldest} to {newest}'}"
    if type(found) is not int or found < oldest:
        raise CorruptUnitError(f"{address} has format {found!r}; {reads}")
    if found > newest:
        raise NewerFormatError(f"{address} has format {found}; {reads}: install a newer release")
