"""The commit protocol on object storage: killed, failed and raced at every request to a real S3 server."""

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

FAULTS = int(os.environ.get("S3_FAULTS", "1"))  # at so many requests of a commit besides the one for its manifest
RACES = int(os.environ.get("RACES", "3"))

Tell = Callable[[int, str, str], None]


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

    def during(self, place: S3UnitStore, plan: Callable[[int], str], work: Callable[[], object]) -> Exception | None:
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
    s3: S3Server, make_place: Callable[..., S3UnitStore], scene: str, figure: Tell
) -> None:
    before = {"first": "none", "replaced": "old"}[scene]
    faults = Faults.at(s3)

    def fresh(retry_seconds: float = 5.0) -> S3UnitStore:
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
    s3: S3Server, make_place: Callable[..., S3UnitStore], how: str
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
    s3: S3Server, make_place: Callable[..., S3UnitStore], plan: str
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
    s3: S3Server, make_place: Callable[..., S3UnitStore], scene: str, content: str, figure: Tell
) -> None:
    def write(place: S3UnitStore, number: int, both: threading.Barrier) -> Unit | StorageError:
        by = {"prefect_flow_run_id": f"flow-{number if content.startswith('another') else 0}"}
        try:
            with committing(place, kind=EXPERIENCE, cycle=2, inputs={}, made_by=by) as draft:
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
    make_place: Callable[..., S3UnitStore],
) -> None:
    place = make_place()
    late = replace(place, staging=place.staging / "late", cache=place.cache / "late")
    with pytest.raises(StorageError, match=r"00002 was committed meanwhile by flow run f: .* trained twice"):
        commit(late, 2, OLD, "g", meanwhile=lambda: commit(place))
    assert state(place) == "new"
    assert objects(place) == FILES + 1
    assert local_leftovers(late) == []


def test_a_reader_of_a_unit_that_is_replaced_meanwhile_gets_the_new_one(make_place: Callable[..., S3UnitStore]) -> None:
    place = make_place()
    commit(place, 2, OLD)
    reader = replace(place, cache=place.cache / "reader")
    read = reader._read(2)
    commit(place)
    with pytest.MonkeyPatch.context() as patch:
        first = [read]
        patch.setattr(S3UnitStore, "_read", _first(first, S3UnitStore._read))
        unit = reader.open(2)
    assert unit and (unit.directory / "0").read_bytes() == NEW


def _first(results: list, then: Callable) -> Callable:
    return lambda self, cycle: results.pop() if results else then(self, cycle)


# ---------------------------------------------------------------- copies


def test_a_damaged_copy_is_fetched_again(make_place: Callable[..., S3UnitStore]) -> None:
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


def test_copies_go_with_their_units(make_place: Callable[..., S3UnitStore]) -> None:
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


def test_what_is_whole_here_is_not_fetched(s3: S3Server, make_place: Callable[..., S3UnitStore]) -> None:
    place = make_place()
    unit = commit(place)
    faults = Faults.at(s3)
    assert faults.during(place, lambda n: PASS, lambda: place.open(2)) is None
    assert faults.during(place, lambda n: PASS, lambda: place.open(2, unit.digest)) is None
    assert list(faults.seen.values()) == [["GET", "GET"]]  # the manifest, twice
