"""Units of a few small files, and forged manifests."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from dqn.metrics import Metric
from storage.units.local_store import LocalUnitStore
from storage.units.store import committing
from storage.units.unit import MANIFEST, TARGETS, Unit, UnitKind, cycle_name, open_unit

Tree = dict[str, Any]  # bytes of files, trees of directories and targets of links, by name

FILES: Tree = {"table": b"\x00\x01" * 50, "array": {"c": {"0": b"chunk"}, "zarr.json": b"{}"}, "empty": b""}
METRICS = [Metric("loss/mean", 3, 0.25), Metric("score", 2**40, 1e-300)]

names = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=20).filter(
    lambda name: name not in (".", "..", MANIFEST)
)
trees = st.dictionaries(
    names, st.recursive(st.binary(max_size=200), lambda below: st.dictionaries(names, below, max_size=3)), max_size=4
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=5), below, max_size=3),
    max_leaves=6,
)


def write_tree(directory: Path, tree: Tree) -> None:
    for name, what in tree.items():
        if isinstance(what, bytes):
            (directory / name).write_bytes(what)
        elif isinstance(what, Path):
            (directory / name).symlink_to(what)
        else:
            (directory / name).mkdir()
            write_tree(directory / name, what)


def read_tree(directory: Path) -> Tree:
    return {
        entry.name: read_tree(entry) if entry.is_dir() else entry.read_bytes()
        for entry in directory.iterdir()
        if entry.name != MANIFEST
    }


def commit(home: Path, tree: Tree = FILES, metrics: Iterable[Metric] = METRICS, **changes: Any) -> Unit:
    metadata = {"kind": TARGETS, "cycle": 4, "inputs": {"experience": "ab" * 32}, "made_by": {"mlflow_run_id": "r"}}
    with committing(LocalUnitStore(home / "replay", home / "staging"), **(metadata | changes)) as draft:
        write_tree(draft.directory, tree)
        draft.metrics += metrics
    unit = open_unit(home / "replay" / cycle_name((metadata | changes)["cycle"]))
    assert unit is not None
    return unit


def manifest_of(directory: Path) -> dict[str, Any]:
    return json.loads((directory / MANIFEST).read_bytes())


def forge(directory: Path, **changes: Any) -> None:
    """Change a manifest, and compute its digest anew."""
    manifest = manifest_of(directory) | changes
    unit = Unit(
        directory,
        UnitKind.parse(manifest["kind"]),
        manifest["cycle"],
        manifest["inputs"],
        manifest["files"],
        manifest["metrics"],
        manifest["made"],
    )
    (directory / MANIFEST).write_text(json.dumps(manifest | {"digest": unit.digest}))


@contextmanager
def reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """Collect the paths of all files that are opened in the block."""
    opened: list[Path] = []
    real = io.open

    def watched(file: Any, *args: Any, **kwargs: Any) -> Any:
        opened.append(Path(file))
        return real(file, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(io, "open", watched)
        yield opened


def all_entries(directory: Path) -> set[str]:
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*")}
