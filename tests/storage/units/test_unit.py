from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from small_units import FILES, METRICS, Tree, all_entries, commit, read_tree, trees, write_tree

from dqn.metrics import Metric
from storage.durable import discard
from storage.errors import CorruptUnitError
from storage.units.local_store import LocalUnitStore
from storage.units.store import committing
from storage.units.unit import EXPERIENCE, TARGETS, UnitKind, kinds_in, open_unit

# ---------------------------------------------------------------- commit and open


def test_opened_unit_equals_committed_unit(tmp_path: Path) -> None:
    unit = commit(tmp_path, made_by={"mlflow_run_id": "r1"})
    assert read_tree(unit.directory) == FILES
    assert (unit.kind, unit.cycle, unit.inputs) == (TARGETS, 4, {"experience": "ab" * 32})
    assert unit.metrics == METRICS
    assert unit.made["by"] == {"mlflow_run_id": "r1"}
    assert unit.bytes == 107
    assert set(unit.files) == {"table", "array/c/0", "array/zarr.json", "empty"}
    assert open_unit(unit.directory) == unit


def test_speeds_and_commit_time_are_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.units.unit.time.time_ns", lambda: 1_700_000_000_123_456_789)
    with committing(
        LocalUnitStore(tmp_path, tmp_path / "staging"), kind=TARGETS, cycle=0, inputs={}, made_by={}
    ) as draft:
        draft.speed["sweep"] = 12.5
    unit = open_unit(tmp_path / "00000")
    assert unit is not None
    assert unit.created_ms == 1_700_000_000_123
    assert unit.made["speed"] == {"sweep": 12.5}


@hypothesis_settings(deadline=None, max_examples=60)
@given(trees)
def test_any_tree_of_files_is_restored_with_the_same_digest(tree: Tree) -> None:
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        unit = commit(Path(one), tree)
        assert read_tree(unit.directory) == tree
        assert commit(Path(other), tree).digest == unit.digest


@hypothesis_settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.text(max_size=9), st.integers(0, 2**63), st.floats()), max_size=5))
def test_any_metrics_are_restored(metrics: list[tuple[str, int, float]]) -> None:
    with tempfile.TemporaryDirectory() as home:
        unit = commit(Path(home), metrics=[Metric(*metric) for metric in metrics])
    assert repr(unit.metrics) == repr([Metric(*metric) for metric in metrics])  # repr, since nan is not nan


def test_open_unit_returns_none_without_a_unit(tmp_path: Path) -> None:
    assert open_unit(tmp_path / "none") is None
    assert open_unit(tmp_path / "none" / "below") is None


def test_commit_leaves_nothing_in_staging(tmp_path: Path) -> None:
    commit(tmp_path)
    commit(tmp_path)
    assert all_entries(tmp_path / "staging") == set()


class Failing:
    """Metrics that fail when they are added, after the files were written."""

    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def __iter__(self) -> Iterator[Metric]:
        raise self.error


ERRORS = [ValueError, OSError, KeyboardInterrupt, SystemExit, GeneratorExit]


@pytest.mark.parametrize("error", ERRORS)
def test_exception_in_the_block_publishes_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error):
        commit(tmp_path, metrics=Failing(error))
    assert all_entries(tmp_path) == {"staging"}


@pytest.mark.parametrize("error", ERRORS)
def test_exception_in_the_block_keeps_the_committed_unit(tmp_path: Path, error: type[BaseException]) -> None:
    before = commit(tmp_path)
    with pytest.raises(error):
        commit(tmp_path, {"table": b"new"}, metrics=Failing(error))
    assert open_unit(before.directory) == before


def test_new_unit_replaces_all_files_of_the_old(tmp_path: Path) -> None:
    commit(tmp_path, {"old": b"1", "both": b"1"})
    unit = commit(tmp_path, {"new": b"2", "both": b"2"})
    assert read_tree(unit.directory) == {"new": b"2", "both": b"2"}
    assert all_entries(tmp_path / "staging") == set()


@pytest.mark.parametrize("obstacle", ["file", "link", "dangling link", "link to a directory", "broken unit"])
def test_obstacle_at_the_units_path_is_replaced(tmp_path: Path, obstacle: str) -> None:
    path, outside = tmp_path / "replay" / "00004", tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_bytes(b"keep me")
    if obstacle == "broken unit":
        (commit(tmp_path).directory / "table").unlink()
    else:
        path.parent.mkdir()
        targets = {"link": outside / "precious", "dangling link": "nowhere", "link to a directory": outside}
        path.write_bytes(b"?") if obstacle == "file" else path.symlink_to(targets[obstacle])
    assert read_tree(commit(tmp_path).directory) == FILES
    assert (outside / "precious").read_bytes() == b"keep me"


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_links_are_not_committed(tmp_path: Path, kind: str) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"secret") if kind == "file" else outside.mkdir()
    with pytest.raises(CorruptUnitError, match="link"):
        commit(tmp_path, {"link": outside})
    assert open_unit(tmp_path / "replay" / "00004") is None


# ---------------------------------------------------------------- the digest


def test_digest_ignores_place_time_and_maker(tmp_path: Path) -> None:
    one = commit(tmp_path / "here")
    with committing(
        LocalUnitStore(tmp_path / "there" / "elsewhere", tmp_path / "there"),
        kind=TARGETS,
        cycle=4,
        inputs={"experience": "ab" * 32},
        made_by={"mlflow_run_id": "another", "prefect_flow_run_id": "x"},
    ) as draft:
        write_tree(draft.directory, dict(reversed(FILES.items())))
        draft.metrics += METRICS
        draft.speed["sweep"] = 3.0
    other = open_unit(tmp_path / "there" / "elsewhere" / "00004")
    assert other is not None and other.made != one.made
    assert other.digest == one.digest


def test_digest_of_a_moved_unit_stays(tmp_path: Path) -> None:
    unit = commit(tmp_path)
    moved = unit.directory.rename(tmp_path / "moved")
    opened = open_unit(moved)
    assert opened is not None and opened.digest == unit.digest


@pytest.mark.parametrize(
    "changes",
    [
        {"tree": FILES | {"table": b"\x00\x01" * 49 + b"\x00\x02"}},
        {"tree": FILES | {"more": b""}},
        {"tree": {("renamed" if name == "empty" else name): what for name, what in FILES.items()}},
        {"kind": EXPERIENCE},
        {"kind": UnitKind("targets", 1)},
        {"cycle": 5},
        {"inputs": {"experience": "ac" * 32}},
        {"inputs": {"checkpoint": "ab" * 32}},
        {"inputs": {}},
        {"metrics": METRICS[:1]},
        {"metrics": METRICS[::-1]},
        {"metrics": [METRICS[0], Metric("score", 2**40, 2e-300)]},
        {"metrics": [METRICS[0], Metric("score", 2**40 + 1, 1e-300)]},
    ],
    ids=str,
)
def test_digest_depends_on_content_kind_cycle_inputs_metrics(tmp_path: Path, changes: Any) -> None:
    assert commit(tmp_path / "one").digest != commit(tmp_path / "other", **changes).digest


# ---------------------------------------------------------------- discarding and listing


def test_discard_removes_the_unit_and_leaves_nothing(tmp_path: Path) -> None:
    unit = commit(tmp_path)
    discard(unit.directory, tmp_path / "staging")
    assert open_unit(unit.directory) is None
    assert all_entries(tmp_path) == {"replay", "staging"}


def test_discard_without_a_unit_does_nothing(tmp_path: Path) -> None:
    discard(tmp_path / "none", tmp_path / "staging")
    assert all_entries(tmp_path) == set()


def test_discard_of_a_link_keeps_its_target(tmp_path: Path) -> None:
    unit = commit(tmp_path)
    (tmp_path / "link").symlink_to(unit.directory)
    discard(tmp_path / "link", tmp_path / "staging")
    assert not (tmp_path / "link").is_symlink()
    assert open_unit(unit.directory) == unit


def test_clear_staging_removes_leftovers_of_killed_writers(tmp_path: Path) -> None:
    write_tree(tmp_path, {"staging": {"targets-00004-x": FILES, "trash-y": {"a": b"1"}}})
    store = LocalUnitStore(tmp_path / "replay", tmp_path / "staging")
    store.clear_staging()
    store.clear_staging()
    assert all_entries(tmp_path) == set()


def test_cycles_are_listed_newest_first(tmp_path: Path) -> None:
    for cycle in (2, 100_000, 0, 31):
        (tmp_path / f"{cycle:05d}").mkdir()
    assert LocalUnitStore(tmp_path, tmp_path / "staging").cycles() == [100_000, 31, 2, 0]
    assert LocalUnitStore(tmp_path / "none", tmp_path / "staging").cycles() == []


def test_other_entries_are_not_listed_as_cycles(tmp_path: Path) -> None:
    for name in ("notes", ".DS_Store", "00001.bak", "-0001", "1e3", " 00003", "00002~", "²"):
        (tmp_path / name).mkdir()
    (tmp_path / "00007").mkdir()
    assert LocalUnitStore(tmp_path, tmp_path / "staging").cycles() == [7]


def test_cycle_with_a_second_spelling_is_listed_once(tmp_path: Path) -> None:
    for name in ("00008", "000008"):
        (tmp_path / name).mkdir()
    assert LocalUnitStore(tmp_path, tmp_path / "staging").cycles() == [8]


@pytest.mark.parametrize("name", ["7", "007", "000007", "\N{ARABIC-INDIC DIGIT SEVEN}"])
def test_other_spellings_of_a_cycle_are_not_listed(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    assert LocalUnitStore(tmp_path, tmp_path / "staging").cycles() == []


# ---------------------------------------------------------------- kinds


KIND_TEXTS = {
    "experience": EXPERIENCE,
    "experience-0": UnitKind("experience", 0),
    "targets-12": UnitKind("targets", 12),
    "checkpoint": UnitKind("checkpoint"),
    "evaluation": UnitKind("evaluation"),
    "evaluation-Breakout-2x0.01-seed0": UnitKind("evaluation", protocol="Breakout-2x0.01-seed0"),
}


@pytest.mark.parametrize("text", KIND_TEXTS)
def test_kind_is_parsed_from_its_text(text: str) -> None:
    assert UnitKind.parse(text) == KIND_TEXTS[text]
    assert str(KIND_TEXTS[text]) == text


@pytest.mark.parametrize(
    "text", ["", "checkpoints", "checkpoint-0", "experience-", "experience-01", "experience-x", "evaluation-", "k"]
)
def test_other_text_is_not_a_kind(text: str) -> None:
    with pytest.raises(ValueError, match="is not a kind of unit"):
        UnitKind.parse(text)
    assert kinds_in([text, "targets"]) == [TARGETS]


def test_kinds_of_shards_exist_for_experience_and_targets() -> None:
    assert EXPERIENCE.of_shards(1) == [EXPERIENCE]
    assert [str(kind) for kind in TARGETS.of_shards(2)] == ["targets-0", "targets-1"]
    assert KIND_TEXTS["checkpoint"].of_shards(2) == [KIND_TEXTS["checkpoint"]]
