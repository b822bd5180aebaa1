"""Errors of an S3 store that is unreachable, refuses requests, or is configured wrongly."""

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


def test_write_waits_for_a_briefly_unreachable_store(s3: S3Server, make_store: Callable[..., S3UnitStore]) -> None:
    store = make_store(30.0)
    waiting = threading.Event()

    def judge(method: str, path: str) -> str:
        if method == "PUT" and path.endswith("/1"):
            waiting.set()
            return CUT
        return PASS

    s3.judge = judge
    with ThreadPoolExecutor(1) as pool:
        committed = pool.submit(commit, store)
        assert waiting.wait(60)
        s3.go_away()
        s3.judge = lambda method, path: PASS
        time.sleep(1)  # for so long it is away
        s3.come_back()
        committed.result(60)
    assert state(store) == "new"


def test_unreachable_store_is_reported_in_one_line(s3: S3Server, make_store: Callable[..., S3UnitStore]) -> None:
    store = make_store(0.2)
    s3.go_away()
    try:
        for work in (lambda: commit(store), lambda: store.open(2), store.cycles, store.names, lambda: store.prune(3)):
            with pytest.raises(OSError, match=r"^s3://units/\S+ cannot be \w+: http://127\S+ does not answer \(.*\)$"):
                work()
    finally:
        s3.come_back()
    assert local_leftovers(store) == []


def test_missing_bucket_is_reported(s3: S3Server, tmp_path: Path) -> None:
    store = S3UnitStore("s3://nobodys/replay", tmp_path / "staging", tmp_path / "cache", 0.2)
    told = r"^s3://nobodys/replay\S* cannot be \w+: NoSuchBucket: The specified bucket does not exist$"
    for work in (lambda: commit(store), lambda: store.open(2), store.cycles, store.names):
        with pytest.raises(OSError, match=told):
            work()


def test_wrong_credentials_are_reported_but_not_shown(
    s3: S3Server, make_store: Callable[..., S3UnitStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(0.2)
    s3.require_credentials(True)
    try:
        for work in (lambda: commit(store), lambda: store.open(2), store.cycles):
            with pytest.raises(OSError, match=r"cannot be \w+: ") as raised:
                work()
            assert "InvalidAccessKeyId" in str(raised.value) or "403 Forbidden" in str(raised.value)
            assert str(raised.value).endswith("; check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
            assert "\n" not in str(raised.value)
            assert SECRET not in str(raised.value)
    finally:
        s3.require_credentials(False)


@pytest.mark.parametrize("endpoint", ["localhost:9000", "ftp://localhost", "http://", "me@host"])
def test_invalid_endpoint_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    store = S3UnitStore("s3://units/replay", tmp_path / "staging", tmp_path / "cache", 0.2)
    with pytest.raises(ValueError, match=r"^AWS_ENDPOINT_URL is '.*'; write http://HOST:PORT or https://HOST$"):
        store.cycles()


def test_incomplete_credentials_are_reported(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setattr(storage.units.s3_store, "_open_store", storage.units.s3_store._open_store.__wrapped__)
    store = S3UnitStore("s3://units/replay", tmp_path / "staging", tmp_path / "cache", 0.2)
    with pytest.raises(OSError, match="Missing SecretAccessKey; check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        store.cycles()


def test_denied_manifest_is_reported_at_once(s3: S3Server, make_store: Callable[..., S3UnitStore]) -> None:
    store, tries = make_store(), []

    def judge(method: str, path: str) -> str:
        if method == "PUT" and path.endswith("manifest.json"):
            tries.append(path)
            return DENY
        return PASS

    s3.judge = judge
    with pytest.raises(OSError, match=r"manifest\.json cannot be written: AccessDenied: told to deny; check AWS"):
        commit(store)
    assert len(tries) == 3
    assert state(store) == "none"


def test_password_in_the_endpoint_is_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://me:{SECRET}@127.0.0.1:9")
    store = S3UnitStore("s3://units/replay", tmp_path / "staging", tmp_path / "cache", 0.2)
    with pytest.raises(OSError, match="does not answer") as raised:
        store.cycles()
    assert SECRET not in str(raised.value)


def test_unit_contains_no_secret(make_store: Callable[..., S3UnitStore]) -> None:
    store = make_store()
    commit(store)
    for key in store._keys():
        assert SECRET.encode() not in bytes(obstore.get(store._store, key).bytes())


def test_missing_package_is_reported_with_its_installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "storage.units.s3_store")
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(StorageError, match=r"^s3://units/replay needs a package .*: install this project with \[s3\]$"):
        open_store("s3://units/replay", Settings(home=tmp_path, tracking_uri="sqlite://"), "run")
    assert open_store("file:///tmp", Settings(home=tmp_path, tracking_uri="sqlite://"), "run")


def test_only_the_s3_store_imports_the_package() -> None:
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
