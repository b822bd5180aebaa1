"""The commit protocol of the S3 store: kills, failures and races at every request to a real S3 server."""

from __future__ import annotations

import os
import random
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import pytest
from s3_server import CUT, CUT_AFTER, ERROR, PASS, SECRET, S3Server
from small_objects import FILES, NEW, OLD, commit, local_leftovers, objects, state

from storage.errors import StorageError
from storage.units.s3_store import S3UnitStore
from storage.units.store import committing
from storage.units.unit import EXPERIENCE, Unit

FAULTS = int(os.environ.get("S3_FAULTS", "1"))  # number of tested requests of a commit besides the one for its manifest
RACES = int(os.environ.get("RACES", "3"))

Tell = Callable[[int, str, str], None]


@dataclass
class Faults:
    """Planned faults of requests, which are counted for each store."""

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

    def during(self, store: S3UnitStore, plan: Callable[[int], str], work: Callable[[], object]) -> Exception | None:
        name = store.address.split("/")[3]
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
    # seconds of retries, and the verdict on request number n for a fault at number k
    "killed before": (0.1, lambda k: lambda n: CUT if n >= k else PASS),
    "killed after": (0.1, lambda k: lambda n: PASS if n < k else CUT_AFTER if n == k else CUT),
    "500 for good": (0.1, lambda k: lambda n: ERROR if n >= k else PASS),
    "cut off once": (5.0, lambda k: lambda n: CUT if n == k else PASS),
    "answer lost once": (5.0, lambda k: lambda n: CUT_AFTER if n == k else PASS),
    "500 once": (5.0, lambda k: lambda n: ERROR if n == k else PASS),
}


@pytest.mark.parametrize("scene", SCENES)
def test_fault_at_any_request_of_a_commit_is_all_or_nothing(
    s3: S3Server, make_store: Callable[..., S3UnitStore], scene: str, figure: Tell
) -> None:
    before = {"first": "none", "replaced": "old"}[scene]
    faults = Faults.at(s3)

    def fresh(retry_seconds: float = 5.0) -> S3UnitStore:
        store = make_store(retry_seconds)
        if scene == "replaced":
            commit(replace(store, retry_seconds=5.0), 2, OLD)
        return store

    counted = fresh()
    assert faults.during(counted, lambda n: PASS, lambda: commit(counted)) is None
    (requests,) = faults.seen.values()
    assert requests[0] == "HEAD" and requests[1 : 1 + FILES] == ["PUT"] * FILES
    assert requests[1 + FILES : 3 + FILES] == ["GET", "PUT"]  # the listing, and the manifest
    assert ("POST" in requests) == (scene == "replaced")

    def attempt(plan: str, at: int) -> str:
        seconds, fault = PLANS[plan]
        store = fresh(seconds)
        error = faults.during(store, fault(at), lambda: commit(store))
        found = state(store)
        assert found in ({"new"} if error is None else {before, "new"}), (plan, at, found, error)
        assert error is None or ("\n" not in str(error) and SECRET not in str(error) and str(store) in str(error))
        if plan in ("cut off once", "answer lost once", "500 once"):
            assert error is None, (plan, at, error)
        patient = replace(store, retry_seconds=5.0)
        commit(patient)
        assert state(store) == "new"
        assert objects(patient) == FILES + 1, (plan, at)
        assert local_leftovers(store) == []
        return found

    with ThreadPoolExecutor(6) as pool:
        tried = [(plan, at) for plan in PLANS for at in _chosen(len(requests), plan)]
        found = list(pool.map(lambda case: attempt(*case), tried))
    assert {before, "new"} <= set(found)
    figure(3, f"{len(tried)} faults at the {len(requests)} requests of a commit to S3 ({scene})", _came(found))


def _chosen(requests: int, purpose: str) -> list[int]:
    """The tested requests: the one for the manifest and a sample that differs by purpose, or all (S3_FAULTS=0)."""
    manifest = 2 + FILES
    others = [at for at in range(requests) if at != manifest]
    return sorted([manifest, *random.Random(purpose).sample(others, min(FAULTS or requests, len(others)))])


def _came(found: list[str]) -> str:
    return ", ".join(f"{count} times the {what} state" for what, count in sorted(Counter(found).items()))


@pytest.mark.parametrize("how", ["discard", "prune"])
def test_kill_during_discard_is_all_or_nothing(s3: S3Server, make_store: Callable[..., S3UnitStore], how: str) -> None:
    faults, seen = Faults.at(s3), []
    for at in range(4):
        store = make_store(0.1)
        patient = replace(store, retry_seconds=5.0)
        commit(patient, 1, OLD)
        commit(patient, 2, OLD)
        remove = partial(store.discard, 1) if how == "discard" else partial(store.prune, 2)
        error = faults.during(store, PLANS["killed before"][1](at), remove)
        seen.append(state(store, 1))
        assert state(store, 2) == "old"
        patient.prune(2)
        assert objects(patient) == FILES + 1
    assert error is None
    assert seen == ["old", "old", "none", "none"]  # listed, the manifest deleted, the files deleted


@pytest.mark.parametrize("plan", ["500 once", "cut off once", "500 for good"])
def test_fault_at_any_request_of_a_read_is_retried_or_reported(
    s3: S3Server, make_store: Callable[..., S3UnitStore], plan: str
) -> None:
    seconds, fault = PLANS[plan]
    for at in range(1 + FILES):
        store = make_store(seconds)
        commit(replace(store, retry_seconds=5.0))
        faults = Faults.at(s3)
        read: list[Unit | None] = []
        other = replace(store, cache=store.cache / "other")
        error = faults.during(store, fault(at), lambda other=other, read=read: read.append(other.open(2)))
        assert (error is None) == ("once" in plan)
        assert error is None or (type(error) is OSError and "cannot be read: InternalError: told to fail" in str(error))
        assert error is not None or (read[0] and (read[0].directory / "2").read_bytes() == NEW)
        assert local_leftovers(store) == []


# ---------------------------------------------------------------- two writers


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("content", ["same", "other", "another flow run's"])
def test_one_of_two_writers_of_a_unit_wins(
    s3: S3Server, make_store: Callable[..., S3UnitStore], scene: str, content: str, figure: Tell
) -> None:
    def write(store: S3UnitStore, number: int, both: threading.Barrier) -> Unit | StorageError:
        by = {"prefect_flow_run_id": f"flow-{number if content.startswith('another') else 0}"}
        try:
            with committing(store, kind=EXPERIENCE, cycle=2, inputs={}, made_by=by) as draft:
                data = f"{number}".encode() if content == "other" else NEW
                for name in range(FILES):
                    (draft.directory / str(name)).write_bytes(data)
                both.wait(60)
            return draft.unit
        except StorageError as error:
            return error

    for _ in range(RACES):
        store, both = make_store(), threading.Barrier(2)
        if scene == "replaced":
            commit(store, 2, OLD)
        stores = [replace(store, staging=store.staging / name, cache=store.cache / name) for name in ("a", "b")]
        with ThreadPoolExecutor(2) as pool:
            results = list(pool.map(write, stores, (1, 2), (both, both)))
        units = [result for result in results if isinstance(result, Unit)]
        errors = [result for result in results if isinstance(result, StorageError)]
        found = replace(store, cache=store.cache / "c").open(2)
        assert found and objects(store) == FILES + 1
        assert {unit.digest for unit in units} == {found.digest}
        assert len(units) == (2 if content == "same" else 1)
        for unit in units:
            assert unit.made == found.made and (unit.directory / "1").exists()
        for error in errors:
            assert "was committed meanwhile by flow run flow-" in str(error) and "\n" not in str(error)
    figure(10, f"{RACES} races of two writers of a unit on S3 ({scene}, {content} content)", "one wins every time")


def test_writer_with_an_old_version_replaces_nothing(
    make_store: Callable[..., S3UnitStore],
) -> None:
    store = make_store()
    late = replace(store, staging=store.staging / "late", cache=store.cache / "late")
    with pytest.raises(StorageError, match=r"00002 was committed meanwhile by flow run f: .* trained twice"):
        commit(late, 2, OLD, "g", meanwhile=lambda: commit(store))
    assert state(store) == "new"
    assert objects(store) == FILES + 1
    assert local_leftovers(late) == []


def test_reader_of_a_replaced_unit_gets_the_new_one(make_store: Callable[..., S3UnitStore]) -> None:
    store = make_store()
    commit(store, 2, OLD)
    reader = replace(store, cache=store.cache / "reader")
    read = reader._read(2)
    commit(store)
    with pytest.MonkeyPatch.context() as patch:
        first = [read]
        patch.setattr(S3UnitStore, "_read", _first(first, S3UnitStore._read))
        unit = reader.open(2)
    assert unit and (unit.directory / "0").read_bytes() == NEW


def _first(results: list, then: Callable) -> Callable:
    return lambda self, cycle: results.pop() if results else then(self, cycle)


# ---------------------------------------------------------------- copies


def test_damaged_copy_is_downloaded_again(make_store: Callable[..., S3UnitStore]) -> None:
    store = make_store()
    unit = commit(store)
    for damage in ("changed", "deleted", "more", "no directory"):
        path = unit.directory / "1"
        if damage == "no directory":
            unit.directory.rename(unit.directory.with_name("aside"))
            unit.directory.write_bytes(b"?")
        elif damage == "deleted":
            path.unlink()
        else:
            (path if damage == "changed" else path.with_name("more")).write_bytes(b"?")
        again = store.open(2)
        assert again == unit
        assert sorted(path.name for path in unit.directory.iterdir()) == ["0", "1", "2"]
        assert path.read_bytes() == NEW
    assert store.open(2, unit.digest) == unit


def test_copies_of_removed_units_are_evicted(make_store: Callable[..., S3UnitStore]) -> None:
    store = make_store()
    other = replace(store, cache=store.cache.with_name("other"))
    for cycle in range(6):
        commit(store, cycle, OLD)
        store.prune(cycle - 1)
        assert other.open(cycle)
    commit(store, 5, NEW)
    assert other.open(5)
    for cache in (store.cache, other.cache):
        assert (
            sorted(entry.name[:5] for entry in cache.iterdir())
            == ["00003", "00004", "00005"][-len(list(cache.iterdir())) :]
        )
        assert len(list(cache.iterdir())) <= 3


def test_intact_copy_is_not_downloaded(s3: S3Server, make_store: Callable[..., S3UnitStore]) -> None:
    store = make_store()
    unit = commit(store)
    faults = Faults.at(s3)
    assert faults.during(store, lambda n: PASS, lambda: store.open(2)) is None
    assert faults.during(store, lambda n: PASS, lambda: store.open(2, unit.digest)) is None
    assert list(faults.seen.values()) == [["GET", "GET"]]  # the manifest, twice
