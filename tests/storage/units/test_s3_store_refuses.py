"""What is told when object storage is away, refuses, or cannot be asked at all."""

from __future__ import annotations

import ast
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import obstore
import pytest
from s3_server import CUT, DENY, PASS, SECRET, S3Server
from small_objects import commit, local_leftovers, state

import storage.units.s3_store
from storage.errors import StorageError
from storage.settings import Settings
from storage.units.open_store import open_store
from storage.units.s3_store import S3UnitStore


def test_a_store_that_is_away_for_a_moment_in_mid_write_is_waited_for(
    s3: S3Server, make_place: Callable[..., S3UnitStore]
) -> None:
    place = make_place(30.0)
    waiting = threading.Event()

    def judge(method: str, path: str) -> str:
        if method == "PUT" and path.endswith("/1"):
            waiting.set()
            return CUT
        return PASS

    s3.judge = judge
    with ThreadPoolExecutor(1) as pool:
        committed = pool.submit(commit, place)
        assert waiting.wait(60)
        s3.go_away()
        s3.judge = lambda method, path: PASS
        time.sleep(1)  # for so long it is away
        s3.come_back()
        committed.result(60)
    assert state(place) == "new"


def test_a_store_that_stays_away_is_told_in_one_line(s3: S3Server, make_place: Callable[..., S3UnitStore]) -> None:
    place = make_place(0.2)
    s3.go_away()
    try:
        for work in (lambda: commit(place), lambda: place.open(2), place.cycles, place.names, lambda: place.prune(3)):
            with pytest.raises(OSError, match=r"^s3://units/\S+ cannot be \w+: http://127\S+ does not answer \(.*\)$"):
                work()
    finally:
        s3.come_back()
    assert local_leftovers(place) == []


def test_a_bucket_that_does_not_exist_is_told(s3: S3Server, tmp_path: Path) -> None:
    place = S3UnitStore("s3://nobodys/replay", tmp_path / "staging", tmp_path / "cache", 0.2)
    told = r"^s3://nobodys/replay\S* cannot be \w+: NoSuchBucket: The specified bucket does not exist$"
    for work in (lambda: commit(place), lambda: place.open(2), place.cycles, place.names):
        with pytest.raises(OSError, match=told):
            work()


def test_wrong_credentials_are_told_and_not_shown(
    s3: S3Server, make_place: Callable[..., S3UnitStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = make_place(0.2)
    s3.require_credentials(True)
    try:
        for work in (lambda: commit(place), lambda: place.open(2), place.cycles):
            with pytest.raises(OSError, match=r"cannot be \w+: ") as raised:
                work()
            assert "InvalidAccessKeyId" in str(raised.value) or "403 Forbidden" in str(raised.value)
            assert str(raised.value).endswith("; see to AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
            assert "\n" not in str(raised.value)
            assert SECRET not in str(raised.value)
    finally:
        s3.require_credentials(False)


@pytest.mark.parametrize("endpoint", ["localhost:9000", "ftp://localhost", "http://", "me@host"])
def test_an_endpoint_that_is_none_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    place = S3UnitStore("s3://units/replay", tmp_path / "staging", tmp_path / "cache", 0.2)
    with pytest.raises(ValueError, match=r"^AWS_ENDPOINT_URL is '.*'; write http://HOST:PORT or https://HOST$"):
        place.cycles()


def test_half_of_the_credentials_is_told(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setattr(storage.units.s3_store, "_open_store", storage.units.s3_store._open_store.__wrapped__)
    place = S3UnitStore("s3://units/replay", tmp_path / "staging", tmp_path / "cache", 0.2)
    with pytest.raises(OSError, match="Missing SecretAccessKey; see to AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        place.cycles()


def test_a_manifest_that_may_not_be_written_is_told_at_once(
    s3: S3Server, make_place: Callable[..., S3UnitStore]
) -> None:
    place, tries = make_place(), []

    def judge(method: str, path: str) -> str:
        if method == "PUT" and path.endswith("manifest.json"):
            tries.append(path)
            return DENY
        return PASS

    s3.judge = judge
    with pytest.raises(OSError, match=r"manifest\.json cannot be written: AccessDenied: told to deny; see to AWS"):
        commit(place)
    assert len(tries) == 3
    assert state(place) == "none"


def test_a_password_in_the_endpoint_is_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://me:{SECRET}@127.0.0.1:9")
    place = S3UnitStore("s3://units/replay", tmp_path / "staging", tmp_path / "cache", 0.2)
    with pytest.raises(OSError, match="does not answer") as raised:
        place.cycles()
    assert SECRET not in str(raised.value)


def test_no_secret_is_kept_with_a_unit(make_place: Callable[..., S3UnitStore]) -> None:
    place = make_place()
    commit(place)
    for key in place._keys():
        assert SECRET.encode() not in bytes(obstore.get(place._store, key).bytes())


def test_without_the_package_it_is_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "storage.units.s3_store")
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(StorageError, match=r"^s3://units/replay needs a package .*: pip install 'dqn\[s3\]'$"):
        open_store("s3://units/replay", Settings(home=tmp_path, tracking_uri="sqlite://"), "run")
    assert open_store("file:///tmp", Settings(home=tmp_path, tracking_uri="sqlite://"), "run")


def test_only_the_object_store_asks_for_the_package() -> None:
    root, found = Path(storage.__file__).parent.parent, set()
    for path in (path for package in ("dqn", "storage", "tasks", "flows") for path in (root / package).glob("**/*.py")):
        tree = ast.parse(path.read_text())
        names = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
        names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        at_once = {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
        if any(name.partition(".")[0] in ("obstore", "boto3") for name in names):
            found.add(path.name)
        assert "storage.units.s3_store" not in at_once, path
    assert found == {"s3_store.py"}
