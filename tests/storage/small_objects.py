"""Units of a few small files in an S3 store, and what another machine reads there."""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import Any

from storage.errors import CorruptUnitError
from storage.units.s3_store import S3UnitStore
from storage.units.store import committing
from storage.units.unit import EXPERIENCE, Unit

OLD, NEW = b"old " * 9, b"new " * 10
FILES = 3


def commit(store: S3UnitStore, cycle: int = 2, data: bytes = NEW, made_by: str = "f", meanwhile: Any = None) -> Unit:
    by = {"prefect_flow_run_id": made_by}
    with committing(store, kind=EXPERIENCE, cycle=cycle, inputs={}, made_by=by) as draft:
        for name in range(FILES):
            (draft.directory / str(name)).write_bytes(data)
        if meanwhile:
            meanwhile()
    return draft.unit


def state(store: S3UnitStore, cycle: int = 2) -> str:
    """The unit that another machine reads: none, old, new, or an error."""
    other = replace(store, cache=store.cache.with_name(uuid.uuid4().hex), retry_seconds=5.0)
    try:
        unit = other.open(cycle)
    except CorruptUnitError as error:
        return f"broken: {error}"
    if unit is None:
        return "none"
    return {OLD: "old", NEW: "new"}[(unit.directory / "0").read_bytes()]


def objects(store: S3UnitStore) -> int:
    return len(store._keys())


def local_leftovers(store: S3UnitStore) -> list[str]:
    return [path.name for path in store.staging.iterdir()] if store.staging.exists() else []
