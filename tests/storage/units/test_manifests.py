from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from small_units import commit, forge, json_values, manifest_of, reads

from storage.errors import CorruptUnitError
from storage.units.unit import EXPERIENCE, FORMAT, MANIFEST, open_unit

# ---------------------------------------------------------------- manifests from a stranger


def test_consistent_forged_manifest_is_accepted(tmp_path: Path) -> None:
    unit = commit(tmp_path)
    forge(unit.directory, kind="experience")
    forged = open_unit(unit.directory)
    assert forged is not None and forged.kind == EXPERIENCE and forged.digest != unit.digest


OUTSIDE = ["/etc/hostname", "../secret", "array/../../secret", "..", "", "./table", "array//zarr.json", "table/"]


@pytest.mark.parametrize(
    ("name", "problem"), [*((name, "leads out of the unit") for name in OUTSIDE), (".", "missing"), ("a\0b", "missing")]
)
def test_file_name_outside_the_unit_is_not_read(
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
def test_link_is_refused_and_its_target_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    unit = commit(tmp_path)
    target = {
        "file": unit.directory / "table",
        "directory": unit.directory / "array",
        "manifest": unit.directory / MANIFEST,
        "unit": unit.directory,
    }[what]
    # What the link leads to is just what the manifest says, so only its being a link gives it away.
    target.symlink_to(target.rename(tmp_path / "outside"))
    with reads(monkeypatch) as opened, pytest.raises(CorruptUnitError, match=r"link|plain file") as raised:
        open_unit(unit.directory)
    assert str(target) in str(raised.value)
    assert all(path == unit.directory / MANIFEST and what != "manifest" for path in opened)


def test_link_to_itself_is_refused(tmp_path: Path) -> None:
    unit = commit(tmp_path)
    (unit.directory / "loop").symlink_to("loop")
    with pytest.raises(CorruptUnitError, match="loop"):
        open_unit(unit.directory)


def test_pipe_is_refused_without_blocking(tmp_path: Path) -> None:
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
def test_foreign_json_is_corrupt(tmp_path: Path, text: str) -> None:
    unit = commit(tmp_path)
    (unit.directory / MANIFEST).write_text(text)
    with pytest.raises(CorruptUnitError, match=r"manifest\.json"):
        open_unit(unit.directory)


def test_changed_number_of_the_format_is_corrupt(tmp_path: Path) -> None:
    """The digest shows that the manifest was damaged, and that no newer release wrote it."""
    unit = commit(tmp_path)
    for other in (2, 3, 11):
        (unit.directory / MANIFEST).write_text(json.dumps(manifest_of(unit.directory) | {"format": other}))
        with pytest.raises(CorruptUnitError, match=r"manifest\.json was changed"):
            open_unit(unit.directory)


@pytest.mark.parametrize("other", [0, "1", None, [1]])
def test_invalid_format_is_corrupt(tmp_path: Path, other: object) -> None:
    unit = commit(tmp_path)
    forge(unit.directory, format=other)
    with pytest.raises(CorruptUnitError, match=rf"manifest\.json has format .*; this version reads {FORMAT}"):
        open_unit(unit.directory)


@hypothesis_settings(deadline=None, max_examples=100)
@given(st.binary(max_size=300))
def test_random_bytes_are_corrupt(data: bytes) -> None:
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
def test_any_value_of_a_field_is_harmless_or_corrupt(field: str, value: object) -> None:
    with tempfile.TemporaryDirectory() as home:
        unit = commit(Path(home))
        (unit.directory / MANIFEST).write_text(json.dumps(manifest_of(unit.directory) | {field: value}))
        try:
            opened = open_unit(unit.directory)
        except CorruptUnitError:
            return
        assert opened is not None and opened.digest == unit.digest


@pytest.mark.parametrize("field", ["format", "kind", "cycle", "digest", "inputs", "files", "metrics", "made"])
def test_manifest_without_a_field_is_corrupt(tmp_path: Path, field: str) -> None:
    unit = commit(tmp_path)
    manifest = manifest_of(unit.directory)
    del manifest[field]
    (unit.directory / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(CorruptUnitError, match=r"manifest\.json"):
        open_unit(unit.directory)


@pytest.mark.parametrize(
    "change", [{"kind": "experience"}, {"cycle": 5}, {"inputs": {}}, {"metrics": []}, {"digest": "0" * 64}], ids=str
)
def test_manifest_changed_by_hand_is_corrupt(tmp_path: Path, change: dict[str, object]) -> None:
    unit = commit(tmp_path)
    (unit.directory / MANIFEST).write_text(json.dumps(manifest_of(unit.directory) | change))
    with pytest.raises(CorruptUnitError, match=r"manifest\.json was changed"):
        open_unit(unit.directory)


# ---------------------------------------------------------------- files that changed


@pytest.mark.parametrize(
    ("name", "data"),
    [("table", b"\x00\x01" * 49 + b"\x00\x00"), ("table", b"\x00\x01" * 51), ("table", b""), ("empty", b"\0")],
)
def test_changed_file_is_named(tmp_path: Path, name: str, data: bytes) -> None:
    unit = commit(tmp_path)
    (unit.directory / name).write_bytes(data)
    with pytest.raises(CorruptUnitError) as raised:
        open_unit(unit.directory)
    assert f"{unit.directory / name} " in str(raised.value)


def test_missing_file_is_named(tmp_path: Path) -> None:
    unit = commit(tmp_path)
    (unit.directory / "array" / "c" / "0").unlink()
    with pytest.raises(CorruptUnitError, match=r"00004/array/c/0 is missing"):
        open_unit(unit.directory)


def test_additional_file_is_named(tmp_path: Path) -> None:
    unit = commit(tmp_path)
    (unit.directory / "array" / "c" / "1").write_bytes(b"")
    with pytest.raises(CorruptUnitError, match=r"00004/array/c/1 is not named"):
        open_unit(unit.directory)


@pytest.mark.parametrize("what", ["a file", "an empty directory", "a directory without a manifest"])
def test_unit_without_a_manifest_is_corrupt(tmp_path: Path, what: str) -> None:
    unit = commit(tmp_path)
    (unit.directory / MANIFEST).unlink()
    if what != "a directory without a manifest":
        shutil.rmtree(unit.directory)
        unit.directory.mkdir() if what == "an empty directory" else unit.directory.write_bytes(b"")
    with pytest.raises(CorruptUnitError, match=r"manifest\.json is missing"):
        open_unit(unit.directory)


@pytest.mark.parametrize("what", ["file", "manifest"])
def test_directory_in_place_of_a_file_is_corrupt(tmp_path: Path, what: str) -> None:
    unit = commit(tmp_path)
    target = unit.directory / ("table" if what == "file" else MANIFEST)
    target.unlink()
    target.mkdir()
    with pytest.raises(CorruptUnitError) as raised:
        open_unit(unit.directory)
    assert str(target) in str(raised.value)
