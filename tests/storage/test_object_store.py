"""The commit protocol on object storage: killed, failed and raced at every request to a real S3 server."""

from __future__ import annotations

import ast
import os
import random
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import obstore
import pytest
from s3_server import BUCKET, CUT, CUT_AFTER, DENY, ERROR, PASS, SECRET, S3Server

import storage.object_store
from storage.errors import CorruptUnitError, StorageError
from storage.object_store import ObjectPlace
from storage.places import committing, open_place
from storage.settings import Settings
from storage.units import Unit

FAULTS = int(os.environ.get("S3_FAULTS", "1"))  # at so many requests of a commit besides the one for its manifest
RACES = int(os.environ.get("RACES", "3"))

OLD, NEW = b"old " * 9, b"new " * 10
FILES = 3

Tell = Callable[[int, str, str], None]


def commit(place: ObjectPlace, cycle: int = 2, data: bytes = NEW, made_by: str = "f", meanwhile: Any = None) -> Unit:
    by = {"prefect_flow_run_id": made_by}
    with committing(place, kind="experience", cycle=cycle, inputs={}, made_by=by) as draft:
        for name in range(FILES):
            (draft.directory / str(name)).write_bytes(data)
        if meanwhile:
            meanwhile()
    return draft.unit


def state(place: ObjectPlace, cycle: int = 2) -> str:
    """Which unit another machine finds there: none, old, new, or what is wrong with it."""
    other = replace(place, cache=place.cache.with_name(uuid.uuid4().hex), retry_seconds=5.0)
    try:
        unit = other.open(cycle)
    except CorruptUnitError as error:
        return f"broken: {error}"
    if unit is None:
        return "none"
    return {OLD: "old", NEW: "new"}[(unit.directory / "0").read_bytes()]


def objects(place: ObjectPlace) -> int:
    return len(place._keys())


def local_leftovers(place: ObjectPlace) -> list[str]:
    return [path.name for path in place.staging.iterdir()] if place.staging.exists() else []


@pytest.fixture
def make_place(s3: S3Server, tmp_path: Path) -> Callable[..., ObjectPlace]:
    def make(retry_seconds: float = 5.0) -> ObjectPlace:
        root = tmp_path / uuid.uuid4().hex
        url = f"s3://{BUCKET}/{root.name}/experience"
        return ObjectPlace(url, root / "staging", root / "cache" / "experience", retry_seconds)

    return make


@dataclass
class Faults:
    """What happens to which request of which place; each place counts its own."""

    server: S3Server
    seen: dict[str, list[str]]
    planned: dict[str, Callable[[int], str]]

    @classmethod
    def at(cls, server: S3Server) -> Faults:
        faults, lock = cls(server, {}, {}), threading.Lock()

        def judge(method: str, path: str) -> str:
            for name, plan in list(faults.planned.items()):
                if name in path:
                    with lock:
                        faults.seen.setdefault(name, []).append(method)
                        return plan(len(faults.seen[name]) - 1)
            return PASS

        server.judge = judge
        return faults

    def during(self, place: ObjectPlace, plan: Callable[[int], str], work: Callable[[], object]) -> Exception | None:
        name = place.address.split("/")[3]
        self.planned[name] = plan
        try:
            work()
        except (OSError, StorageError) as error:
            return error
        finally:
            del self.planned[name]
        return None


SCENES = ["first", "replaced"]
PLANS: dict[str, tuple[float, Callable[[int], Callable[[int], str]]]] = {
    # how long is tried again, and what becomes of request number n when the fault is at number k
    "killed before": (0.1, lambda k: lambda n: CUT if n >= k else PASS),
    "killed after": (0.1, lambda k: lambda n: PASS if n < k else CUT_AFTER if n == k else CUT),
    "500 for good": (0.1, lambda k: lambda n: ERROR if n >= k else PASS),
    "cut off once": (5.0, lambda k: lambda n: CUT if n == k else PASS),
    "answer lost once": (5.0, lambda k: lambda n: CUT_AFTER if n == k else PASS),
    "500 once": (5.0, lambda k: lambda n: ERROR if n == k else PASS),
}


@pytest.mark.parametrize("scene", SCENES)
def test_a_fault_at_any_request_of_a_commit_leaves_the_old_state_or_the_new(
    s3: S3Server, make_place: Callable[..., ObjectPlace], scene: str, figure: Tell
) -> None:
    before = {"first": "none", "replaced": "old"}[scene]
    faults = Faults.at(s3)

    def fresh(retry_seconds: float = 5.0) -> ObjectPlace:
        place = make_place(retry_seconds)
        if scene == "replaced":
            commit(replace(place, retry_seconds=5.0), 2, OLD)
        return place

    counted = fresh()
    assert faults.during(counted, lambda n: PASS, lambda: commit(counted)) is None
    (requests,) = faults.seen.values()
    assert requests[0] == "HEAD" and requests[1 : 1 + FILES] == ["PUT"] * FILES
    assert requests[1 + FILES : 3 + FILES] == ["GET", "PUT"]  # the listing, and the manifest
    assert ("POST" in requests) == (scene == "replaced")

    def attempt(plan: str, at: int) -> str:
        seconds, fault = PLANS[plan]
        place = fresh(seconds)
        error = faults.during(place, fault(at), lambda: commit(place))
        found = state(place)
        assert found in ({"new"} if error is None else {before, "new"}), (plan, at, found, error)
        assert error is None or ("\n" not in str(error) and SECRET not in str(error) and str(place) in str(error))
        if plan in ("cut off once", "answer lost once", "500 once"):
            assert error is None, (plan, at, error)
        patient = replace(place, retry_seconds=5.0)
        commit(patient)
        assert state(place) == "new"
        assert objects(patient) == FILES + 1, (plan, at)
        assert local_leftovers(place) == []
        return found

    with ThreadPoolExecutor(6) as pool:
        tried = [(plan, at) for plan in PLANS for at in _chosen(len(requests), plan)]
        found = list(pool.map(lambda case: attempt(*case), tried))
    assert {before, "new"} <= set(found)
    figure(3, f"{len(tried)} faults at the {len(requests)} requests of a commit to S3 ({scene})", _came(found))


def _chosen(requests: int, purpose: str) -> list[int]:
    """The requests to try: the one for the manifest and a sample that differs by purpose, or all (S3_FAULTS=0)."""
    manifest = 2 + FILES
    others = [at for at in range(requests) if at != manifest]
    return sorted([manifest, *random.Random(purpose).sample(others, min(FAULTS or requests, len(others)))])


def _came(found: list[str]) -> str:
    return ", ".join(f"{count} times the {what} state" for what, count in sorted(Counter(found).items()))


@pytest.mark.parametrize("how", ["discard", "prune"])
def test_killed_while_removing_a_unit_it_is_whole_or_gone_and_pruning_removes_the_rest(
    s3: S3Server, make_place: Callable[..., ObjectPlace], how: str
) -> None:
    faults, seen = Faults.at(s3), []
    for at in range(4):
        place = make_place(0.1)
        patient = replace(place, retry_seconds=5.0)
        commit(patient, 1, OLD)
        commit(patient, 2, OLD)
        remove = partial(place.discard, 1) if how == "discard" else partial(place.prune, 2)
        error = faults.during(place, PLANS["killed before"][1](at), remove)
        seen.append(state(place, 1))
        assert state(place, 2) == "old"
        patient.prune(2)
        assert objects(patient) == FILES + 1
    assert error is None
    assert seen == ["old", "old", "none", "none"]  # listed, the manifest deleted, the files deleted


@pytest.mark.parametrize("plan", ["500 once", "cut off once", "500 for good"])
def test_a_fault_at_any_request_of_reading_is_overcome_or_told(
    s3: S3Server, make_place: Callable[..., ObjectPlace], plan: str
) -> None:
    seconds, fault = PLANS[plan]
    for at in range(1 + FILES):
        place = make_place(seconds)
        commit(replace(place, retry_seconds=5.0))
        faults = Faults.at(s3)
        read: list[Unit | None] = []
        other = replace(place, cache=place.cache / "other")
        error = faults.during(place, fault(at), lambda other=other, read=read: read.append(other.open(2)))
        assert (error is None) == ("once" in plan)
        assert error is None or (type(error) is OSError and "cannot be read: InternalError: told to fail" in str(error))
        assert error is not None or (read[0] and (read[0].directory / "2").read_bytes() == NEW)
        assert local_leftovers(place) == []


# ---------------------------------------------------------------- two writers


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("content", ["same", "other", "another flow run's"])
def test_of_two_writers_of_a_unit_one_wins(
    s3: S3Server, make_place: Callable[..., ObjectPlace], scene: str, content: str, figure: Tell
) -> None:
    def write(place: ObjectPlace, number: int, both: threading.Barrier) -> Unit | StorageError:
        by = {"prefect_flow_run_id": f"flow-{number if content.startswith('another') else 0}"}
        try:
            with committing(place, kind="experience", cycle=2, inputs={}, made_by=by) as draft:
                data = f"{number}".encode() if content == "other" else NEW
                for name in range(FILES):
                    (draft.directory / str(name)).write_bytes(data)
                both.wait(60)
            return draft.unit
        except StorageError as error:
            return error

    for _ in range(RACES):
        place, both = make_place(), threading.Barrier(2)
        if scene == "replaced":
            commit(place, 2, OLD)
        places = [replace(place, staging=place.staging / name, cache=place.cache / name) for name in ("a", "b")]
        with ThreadPoolExecutor(2) as pool:
            results = list(pool.map(write, places, (1, 2), (both, both)))
        units = [result for result in results if isinstance(result, Unit)]
        errors = [result for result in results if isinstance(result, StorageError)]
        found = replace(place, cache=place.cache / "c").open(2)
        assert found and objects(place) == FILES + 1
        assert {unit.digest for unit in units} == {found.digest}
        assert len(units) == (2 if content == "same" else 1)
        for unit in units:
            assert unit.made == found.made and (unit.directory / "1").exists()
        for error in errors:
            assert "was committed meanwhile by flow run flow-" in str(error) and "\n" not in str(error)
    figure(10, f"{RACES} races of two writers of a unit on S3 ({scene}, {content} content)", "one wins every time")


def test_who_began_before_another_one_committed_does_not_replace_its_unit(
    make_place: Callable[..., ObjectPlace],
) -> None:
    place = make_place()
    late = replace(place, staging=place.staging / "late", cache=place.cache / "late")
    with pytest.raises(StorageError, match=r"00002 was committed meanwhile by flow run f: .* trained twice"):
        commit(late, 2, OLD, "g", meanwhile=lambda: commit(place))
    assert state(place) == "new"
    assert objects(place) == FILES + 1
    assert local_leftovers(late) == []


def test_a_reader_of_a_unit_that_is_replaced_meanwhile_gets_the_new_one(make_place: Callable[..., ObjectPlace]) -> None:
    place = make_place()
    commit(place, 2, OLD)
    reader = replace(place, cache=place.cache / "reader")
    read = reader._read(2)
    commit(place)
    with pytest.MonkeyPatch.context() as patch:
        first = [read]
        patch.setattr(ObjectPlace, "_read", _first(first, ObjectPlace._read))
        unit = reader.open(2)
    assert unit and (unit.directory / "0").read_bytes() == NEW


def _first(results: list, then: Callable) -> Callable:
    return lambda self, cycle: results.pop() if results else then(self, cycle)


# ---------------------------------------------------------------- copies


def test_a_damaged_copy_is_fetched_again(make_place: Callable[..., ObjectPlace]) -> None:
    place = make_place()
    unit = commit(place)
    for damage in ("changed", "deleted", "more", "no directory"):
        path = unit.directory / "1"
        if damage == "no directory":
            unit.directory.rename(unit.directory.with_name("aside"))
            unit.directory.write_bytes(b"?")
        elif damage == "deleted":
            path.unlink()
        else:
            (path if damage == "changed" else path.with_name("more")).write_bytes(b"?")
        again = place.open(2)
        assert again == unit
        assert sorted(path.name for path in unit.directory.iterdir()) == ["0", "1", "2"]
        assert path.read_bytes() == NEW
    assert place.open(2, unit.digest) == unit


def test_copies_go_with_their_units(make_place: Callable[..., ObjectPlace]) -> None:
    place = make_place()
    other = replace(place, cache=place.cache.with_name("other"))
    for cycle in range(6):
        commit(place, cycle, OLD)
        place.prune(cycle - 1)
        assert other.open(cycle)
    commit(place, 5, NEW)
    assert other.open(5)
    for cache in (place.cache, other.cache):
        assert (
            sorted(entry.name[:5] for entry in cache.iterdir())
            == ["00003", "00004", "00005"][-len(list(cache.iterdir())) :]
        )
        assert len(list(cache.iterdir())) <= 3


def test_what_is_whole_here_is_not_fetched(s3: S3Server, make_place: Callable[..., ObjectPlace]) -> None:
    place = make_place()
    unit = commit(place)
    faults = Faults.at(s3)
    assert faults.during(place, lambda n: PASS, lambda: place.open(2)) is None
    assert faults.during(place, lambda n: PASS, lambda: place.open(2, unit.digest)) is None
    assert list(faults.seen.values()) == [["GET", "GET"]]  # the manifest, twice


# ---------------------------------------------------------------- a store that is away, or refuses


def test_a_store_that_is_away_for_a_moment_in_mid_write_is_waited_for(
    s3: S3Server, make_place: Callable[..., ObjectPlace]
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


def test_a_store_that_stays_away_is_told_in_one_line(s3: S3Server, make_place: Callable[..., ObjectPlace]) -> None:
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
    place = ObjectPlace("s3://nobodys/replay", tmp_path / "staging", tmp_path / "cache", 0.2)
    told = r"^s3://nobodys/replay\S* cannot be \w+: NoSuchBucket: The specified bucket does not exist$"
    for work in (lambda: commit(place), lambda: place.open(2), place.cycles, place.names):
        with pytest.raises(OSError, match=told):
            work()


def test_wrong_credentials_are_told_and_not_shown(
    s3: S3Server, make_place: Callable[..., ObjectPlace], monkeypatch: pytest.MonkeyPatch
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
    place = ObjectPlace("s3://units/replay", tmp_path / "staging", tmp_path / "cache", 0.2)
    with pytest.raises(ValueError, match=r"^AWS_ENDPOINT_URL is '.*'; write http://HOST:PORT or https://HOST$"):
        place.cycles()


def test_half_of_the_credentials_is_told(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setattr(storage.object_store, "_open_store", storage.object_store._open_store.__wrapped__)
    place = ObjectPlace("s3://units/replay", tmp_path / "staging", tmp_path / "cache", 0.2)
    with pytest.raises(OSError, match="Missing SecretAccessKey; see to AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        place.cycles()


def test_a_manifest_that_may_not_be_written_is_told_at_once(
    s3: S3Server, make_place: Callable[..., ObjectPlace]
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
    place = ObjectPlace("s3://units/replay", tmp_path / "staging", tmp_path / "cache", 0.2)
    with pytest.raises(OSError, match="does not answer") as raised:
        place.cycles()
    assert SECRET not in str(raised.value)


def test_no_secret_is_kept_with_a_unit(make_place: Callable[..., ObjectPlace]) -> None:
    place = make_place()
    commit(place)
    for key in place._keys():
        assert SECRET.encode() not in bytes(obstore.get(place._store, key).bytes())


# ---------------------------------------------------------------- without the package


def test_without_the_package_it_is_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "storage.object_store")
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(StorageError, match=r"^s3://units/replay needs a package .*: pip install 'dqn\[s3\]'$"):
        open_place("s3://units/replay", Settings(tmp_path, "sqlite://"), "run")
    assert open_place("file:///tmp", Settings(tmp_path, "sqlite://"), "run")


def test_only_the_object_store_asks_for_the_package() -> None:
    root, found = Path(storage.__file__).parent.parent, set()
    for path in (path for package in ("dqn", "storage", "tasks", "flows") for path in (root / package).glob("**/*.py")):
        tree = ast.parse(path.read_text())
        names = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
        names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        at_once = {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
        if any(name.partition(".")[0] in ("obstore", "boto3") for name in names):
            found.add(path.name)
        assert "storage.object_store" not in at_once, path
    assert found == {"object_store.py"}
