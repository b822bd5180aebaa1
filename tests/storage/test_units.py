from __future__ import annotations

import io
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from dqn.statistics import Metric
from storage.errors import CorruptUnitError
from storage.units import FORMAT, MANIFEST, Unit, clear_staging, committing, cycles_in, discard, open_unit

Tree = dict[
    str, Any
]  # names of files with their bytes, and of directories with their trees, and of links with where they lead

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
    facts = {"kind": "targets", "cycle": 4, "inputs": {"experience": "ab" * 32}, "made_by": {"mlflow_run_id": "r"}}
    directory = changes.pop("directory", home / "replay" / "00004")
    with committing(directory, home / "staging", **(facts | changes)) as draft:
        write_tree(draft.directory, tree)
        draft.metrics += metrics
    unit = open_unit(directory)
    assert unit is not None
    return unit


def manifest_of(directory: Path) -> dict[str, Any]:
    return json.loads((directory / MANIFEST).read_bytes())


def forge(directory: Path, **changes: Any) -> None:
    """Change a manifest like a stranger who knows how its digest is made."""
    manifest = manifest_of(directory) | changes
    unit = Unit(
        directory,
        manifest["kind"],
        manifest["cycle"],
        manifest["inputs"],
        manifest["files"],
        manifest["metrics"],
        manifest["made"],
    )
    (directory / MANIFEST).write_text(json.dumps(manifest | {"digest": unit.digest}))


@contextmanager
def reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """Collects the files that are opened in the block."""
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


# ---------------------------------------------------------------- commit and open


def test_what_was_committed_is_what_is_opened(tmp_path: Path) -> None:
    unit = commit(tmp_path, made_by={"mlflow_run_id": "r1"})
    assert read_tree(unit.directory) == FILES
    assert (unit.kind, unit.cycle, unit.inputs) == ("targets", 4, {"experience": "ab" * 32})
    assert unit.metrics == METRICS
    assert unit.made["by"] == {"mlflow_run_id": "r1"}
    assert unit.bytes == 107
    assert set(unit.files) == {"table", "array/c/0", "array/zarr.json", "empty"}
    assert open_unit(unit.directory) == unit


def test_speeds_and_the_time_of_commit_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.units.time.time_ns", lambda: 1_700_000_000_123_456_789)
    with committing(tmp_path / "u", tmp_path / "staging", kind="k", cycle=0, inputs={}, made_by={}) as draft:
        draft.speed["sweep"] = 12.5
    unit = open_unit(tmp_path / "u")
    assert unit is not None
    assert unit.created_ms == 1_700_000_000_123
    assert unit.made["speed"] == {"sweep": 12.5}


@hypothesis_settings(deadline=None, max_examples=60)
@given(trees)
def test_any_tree_of_files_comes_back_and_has_one_digest(tree: Tree) -> None:
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        unit = commit(Path(one), tree)
        assert read_tree(unit.directory) == tree
        assert commit(Path(other), tree).digest == unit.digest


@hypothesis_settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.text(max_size=9), st.integers(0, 2**63), st.floats()), max_size=5))
def test_any_metrics_come_back(metrics: list[tuple[str, int, float]]) -> None:
    with tempfile.TemporaryDirectory() as home:
        unit = commit(Path(home), metrics=[Metric(*metric) for metric in metrics])
    assert repr(unit.metrics) == repr([Metric(*metric) for metric in metrics])  # repr, since nan is not nan


def test_where_nothing_was_committed_there_is_no_unit(tmp_path: Path) -> None:
    assert open_unit(tmp_path / "none") is None
    assert open_unit(tmp_path / "none" / "below") is None


def test_a_commit_leaves_nothing_in_staging(tmp_path: Path) -> None:
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
def test_an_exception_inside_the_block_publishes_nothing_and_leaves_no_stage(
    tmp_path: Path, error: type[BaseException]
) -> None:
    with pytest.raises(error):
        commit(tmp_path, metrics=Failing(error))
    assert all_entries(tmp_path) == {"staging"}


@pytest.mark.parametrize("error", ERRORS)
def test_an_exception_inside_the_block_leaves_the_unit_that_stands_there(
    tmp_path: Path, error: type[BaseException]
) -> None:
    before = commit(tmp_path)
    with pytest.raises(error):
        commit(tmp_path, {"table": b"new"}, metrics=Failing(error))
    assert open_unit(before.directory) == before


def test_a_new_unit_replaces_the_old_one_whole(tmp_path: Path) -> None:
    commit(tmp_path, {"old": b"1", "both": b"1"})
    unit = commit(tmp_path, {"new": b"2", "both": b"2"})
    assert read_tree(unit.directory) == {"new": b"2", "both": b"2"}
    assert all_entries(tmp_path / "staging") == set()


@pytest.mark.parametrize("obstacle", ["file", "link", "dangling link", "link to a directory", "broken unit"])
def test_whatever_stands_in_the_way_is_replaced(tmp_path: Path, obstacle: str) -> None:
    place, outside = tmp_path / "replay" / "00004", tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_bytes(b"keep me")
    if obstacle == "broken unit":
        (commit(tmp_path).directory / "table").unlink()
    else:
        place.parent.mkdir()
        targets = {"link": outside / "precious", "dangling link": "nowhere", "link to a directory": outside}
        place.write_bytes(b"?") if obstacle == "file" else place.symlink_to(targets[obstacle])
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


def test_the_digest_is_the_same_wherever_whenever_and_by_whomever_it_was_made(tmp_path: Path) -> None:
    one = commit(tmp_path / "here")
    with committing(
        tmp_path / "there" / "elsewhere",
        tmp_path / "there",
        kind="targets",
        cycle=4,
        inputs={"experience": "ab" * 32},
        made_by={"mlflow_run_id": "another", "prefect_flow_run_id": "x"},
    ) as draft:
        write_tree(draft.directory, dict(reversed(FILES.items())))
        draft.metrics += METRICS
        draft.speed["sweep"] = 3.0
    other = open_unit(tmp_path / "there" / "elsewhere")
    assert other is not None and other.made != one.made
    assert other.digest == one.digest


def test_the_digest_stays_when_the_unit_is_moved(tmp_path: Path) -> None:
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
        {"kind": "experience"},
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
def test_the_digest_differs_with_content_kind_cycle_inputs_and_metrics(tmp_path: Path, changes: Any) -> None:
    assert commit(tmp_path / "one").digest != commit(tmp_path / "other", **changes).digest


# ---------------------------------------------------------------- discarding and listing


def test_a_discarded_unit_is_gone_and_leaves_nothing(tmp_path: Path) -> None:
    unit = commit(tmp_path)
    discard(unit.directory, tmp_path / "staging")
    assert open_unit(unit.directory) is None
    assert all_entries(tmp_path) == {"replay", "staging"}


def test_discarding_nothing_is_no_error(tmp_path: Path) -> None:
    discard(tmp_path / "none", tmp_path / "staging")
    assert all_entries(tmp_path) == set()


def test_discarding_a_link_leaves_what_it_leads_to(tmp_path: Path) -> None:
    unit = commit(tmp_path)
    (tmp_path / "link").symlink_to(unit.directory)
    discard(tmp_path / "link", tmp_path / "staging")
    assert not (tmp_path / "link").is_symlink()
    assert open_unit(unit.directory) == unit


def test_clearing_removes_what_killed_writers_left(tmp_path: Path) -> None:
    write_tree(tmp_path, {"staging": {"targets-00004-x": FILES, "trash-y": {"a": b"1"}}})
    clear_staging(tmp_path / "staging")
    clear_staging(tmp_path / "staging")
    assert all_entries(tmp_path) == set()


def test_cycles_are_listed_newest_first(tmp_path: Path) -> None:
    for cycle in (2, 100_000, 0, 31):
        (tmp_path / f"{cycle:05d}").mkdir()
    assert cycles_in(tmp_path) == [100_000, 31, 2, 0]
    assert cycles_in(tmp_path / "none") == []


def test_entries_that_are_no_cycles_are_not_listed(tmp_path: Path) -> None:
    for name in ("notes", ".DS_Store", "00001.bak", "-0001", "1e3", " 00003", "00002~", "²"):
        (tmp_path / name).mkdir()
    (tmp_path / "00007").mkdir()
    assert cycles_in(tmp_path) == [7]


def test_a_cycle_is_listed_once_whatever_stands_beside_it(tmp_path: Path) -> None:
    for name in ("00008", "000008"):
        (tmp_path / name).mkdir()
    assert cycles_in(tmp_path) == [8]


@pytest.mark.parametrize("name", ["7", "007", "000007", "\N{ARABIC-INDIC DIGIT SEVEN}"])
def test_a_cycle_written_in_another_way_is_not_listed(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    assert cycles_in(tmp_path) == []


# ---------------------------------------------------------------- manifests from a stranger


def test_a_forged_manifest_is_believed_where_it_tells_the_truth(tmp_path: Path) -> None:
    unit = commit(tmp_path)
    forge(unit.directory, kind="experience")
    forged = open_unit(unit.directory)
    assert forged is not None and forged.kind == "experience" and forged.digest != unit.digest


OUTSIDE = ["/etc/hostname", "../secret", "array/../../secret", "..", "", "./table", "array//zarr.json", "table/"]


@pytest.mark.parametrize(
    ("name", "problem"), [*((name, "leads out of the unit") for name in OUTSIDE), (".", "missing"), ("a\0b", "missing")]
)
def test_a_file_name_that_leads_elsewhere_is_refused_and_nothing_outside_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, problem: str
) -> None:
    unit = commit(tmp_path)
    (unit.directory.parent / "secret").write_bytes(b"")
    nothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    forge(unit.directory, files=manifest_of(unit.directory)["files"] | {name: [0, nothing]})
    with reads(monkeypatch) as opened, pytest.raises(CorruptUnitError, match=problem):
        open_unit(unit.directory)
    assert all(path.is_relative_to(unit.directory) and ".." not in path.parts for path in opened)


@pytest.mark.parametrize("what", ["file", "directory", "manifest", "unit"])
def test_links_are_refused_and_nothing_outside_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    unit = commit(tmp_path)
    place = {
        "file": unit.directory / "table",
        "directory": unit.directory / "array",
        "manifest": unit.directory / MANIFEST,
        "unit": unit.directory,
    }[what]
    # What the link leads to is just what the manifest says, so only its being a link gives it away.
    place.symlink_to(place.rename(tmp_path / "outside"))
    with reads(monkeypatch) as opened, pytest.raises(CorruptUnitError, match=r"link|plain file") as raised:
        open_unit(unit.directory)
    assert str(place) in str(raised.value)
    assert all(path == unit.directory / MANIFEST and what != "manifest" for path in opened)


def test_a_link_to_itself_is_refused(tmp_path: Path) -> None:
    unit = commit(tmp_path)
    (unit.directory / "loop").symlink_to("loop")
    with pytest.raises(CorruptUnitError, match="loop"):
        open_unit(unit.directory)


def test_a_pipe_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    unit = commit(tmp_path)
    (unit.directory / "empty").unlink()
    os.mkfifo(unit.directory / "empty")

    def give_up(*_: object) -> None:
        raise TimeoutError("still waiting")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        with pytest.raises(CorruptUnitError, match="empty"):
            open_unit(unit.directory)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "3",
        "[]",
        "{}",
        '"manifest"',
        '{"format": 1}',
        '{"format": [1]}',
        "\ufeff{}",
        "[" * 200_000,
        '{"format": ' * 50_000,
        '{"format": 1, "files": ' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"format": 1, "cycle": ' + "9" * 10_000 + "}",
    ],
    ids=lambda text: text[:20],
)
def test_foreign_json_is_no_manifest(tmp_path: Path, text: str) -> None:
    unit = commit(tmp_path)
    (unit.directory / MANIFEST).write_text(text)
    with pytest.raises(CorruptUnitError, match=r"manifest\.json"):
        open_unit(unit.directory)


@pytest.mark.parametrize("other", [0, 2, "1", None, [1]])
def test_another_format_is_named_and_refused(tmp_path: Path, other: object) -> None:
    unit = commit(tmp_path)
    forge(unit.directory, format=other)
    with pytest.raises(CorruptUnitError, match=rf"manifest\.json has format .*; this version reads {FORMAT}"):
        open_unit(unit.directory)


@hypothesis_settings(deadline=None, max_examples=100)
@given(st.binary(max_size=300))
def test_random_bytes_are_no_manifest(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as home:
        unit = commit(Path(home))
        (unit.directory / MANIFEST).write_bytes(data)
        with pytest.raises(CorruptUnitError, match=r"manifest\.json"):
            open_unit(unit.directory)


@hypothesis_settings(deadline=None, max_examples=120)
@given(st.sampled_from(["format", "kind", "cycle", "digest", "inputs", "files", "metrics", "made"]), json_values)
@example("cycle", float("inf"))
@example("metrics", [["loss/mean", float("inf"), 0.25]])
@example("metrics", [["loss/mean", 3, 10**400]])
@example("files", {"table": [float("inf"), "ab"]})
@example("made", {"created_ms": float("inf")})
def test_a_manifest_with_anything_in_a_field_is_the_same_unit_or_corrupt(field: str, value: object) -> None:
    with tempfile.TemporaryDirectory() as home:
        unit = commit(Path(home))
        (unit.directory / MANIFEST).write_text(json.dumps(manifest_of(unit.directory) | {field: value}))
        try:
            opened = open_unit(unit.directory)
        except CorruptUnitError:
            return
        assert opened is not None and opened.digest == unit.digest


@pytest.mark.parametrize("field", ["format", "kind", "cycle", "digest", "inputs", "files", "metrics", "made"])
def test_a_manifest_without_a_field_is_corrupt(tmp_path: Path, field: str) -> None:
    unit = commit(tmp_path)
    manifest = manifest_of(unit.directory)
    del manifest[field]
    (unit.directory / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(CorruptUnitError, match=r"manifest\.json"):
        open_unit(unit.directory)


@pytest.mark.parametrize(
    "change", [{"kind": "experience"}, {"cycle": 5}, {"inputs": {}}, {"metrics": []}, {"digest": "0" * 64}], ids=str
)
def test_a_manifest_changed_by_hand_is_corrupt(tmp_path: Path, change: dict[str, object]) -> None:
    unit = commit(tmp_path)
    (unit.directory / MANIFEST).write_text(json.dumps(manifest_of(unit.directory) | change))
    with pytest.raises(CorruptUnitError, match=r"manifest\.json was changed"):
        open_unit(unit.directory)


# ---------------------------------------------------------------- files that changed


@pytest.mark.parametrize(
    ("name", "data"),
    [("table", b"\x00\x01" * 49 + b"\x00\x00"), ("table", b"\x00\x01" * 51), ("table", b""), ("empty", b"\0")],
)
def test_a_changed_file_is_named(tmp_path: Path, name: str, data: bytes) -> None:
    unit = commit(tmp_path)
    (unit.directory / name).write_bytes(data)
    with pytest.raises(CorruptUnitError) as raised:
        open_unit(unit.directory)
    assert f"{unit.directory / name} " in str(raised.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    unit = commit(tmp_path)
    (unit.directory / "array" / "c" / "0").unlink()
    with pytest.raises(CorruptUnitError, match=r"00004/array/c/0 is missing"):
        open_unit(unit.directory)


def test_a_file_too_many_is_named(tmp_path: Path) -> None:
    unit = commit(tmp_path)
    (unit.directory / "array" / "c" / "1").write_bytes(b"")
    with pytest.raises(CorruptUnitError, match=r"00004/array/c/1 is not named"):
        open_unit(unit.directory)


@pytest.mark.parametrize("what", ["a file", "an empty directory", "a directory without a manifest"])
def test_what_has_no_manifest_is_corrupt(tmp_path: Path, what: str) -> None:
    unit = commit(tmp_path)
    (unit.directory / MANIFEST).unlink()
    if what != "a directory without a manifest":
        shutil.rmtree(unit.directory)
        unit.directory.mkdir() if what == "an empty directory" else unit.directory.write_bytes(b"")
    with pytest.raises(CorruptUnitError, match=r"manifest\.json is missing"):
        open_unit(unit.directory)


@pytest.mark.parametrize("what", ["file", "manifest"])
def test_a_directory_is_no_file(tmp_path: Path, what: str) -> None:
    unit = commit(tmp_path)
    place = unit.directory / ("table" if what == "file" else MANIFEST)
    place.unlink()
    place.mkdir()
    with pytest.raises(CorruptUnitError) as raised:
        open_unit(unit.directory)
    assert str(place) in str(raised.value)
