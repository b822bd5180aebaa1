"""The list of all training runs."""

from __future__ import annotations

from pathlib import Path

from storage.run_rows import RunRow, read_rows
from storage.settings import Settings

_SQLITE = "sqlite:///"


def list_runs() -> list[RunRow]:
    """All training runs, newest first. Runs and sweeps whose writer died are marked as killed.

    Raises:
        StorageError: the store cannot be reached.
    """
    settings = Settings.from_environment()
    if settings.tracking_uri.startswith(_SQLITE):
        rows = read_rows(Path(settings.tracking_uri.removeprefix(_SQLITE)), settings)
        if rows is not None:
            return rows
    from storage.run_catalog import runs_in_mlflow  # its import takes seconds

    return runs_in_mlflow()
