from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

import storage.run_lock
from storage.errors import StorageError
from storage.runs import StoredRun
from storage.units.unit import TARGETS

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

RACES = int(os.environ.get("RACES", "4"))
from small_run import another_process, commit, train

# ---------------------------------------------------------------- one writer


def test_second_writer_is_refused_with_the_holders_name(run: StoredRun) -> None:
    with another_process(lambda say: train(run, say)) as (holder, hears):
        assert hears() == b"writing"
        assert run.is_held()
        with pytest.raises(StorageError) as raised, run.writing():
            pytest.fail("two writers")
        told = str(raised.value)
        assert told.startswith(f"run my-run is being trained by process {holder} on {socket.gethostname()} since ")
        assert "\n" not in told
        assert "stop it" in told
        assert list(run.settings.staging(run.run_id).iterdir()), "a refused writer must not clear the staging area"


def test_lock_of_killed_holder_is_released_and_staging_cleared(run: StoredRun) -> None:
    with another_process(lambda say: train(run, say)) as (_, hears):
        hears()
    assert not run.is_held()
    assert len(list(run.settings.staging(run.run_id).iterdir())) == 1
    with run.writing():
        assert not run.settings.staging(run.run_id).exists()
        commit(run, TARGETS, 1)
    assert list(run.settings.staging(run.run_id).iterdir()) == []


def test_lock_is_released_at_the_end_and_after_an_error(run: StoredRun) -> None:
    def fail() -> None:
        with run.writing():
            assert run.is_held()
            raise ZeroDivisionError

    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            fail()
        assert not run.is_held()
        with run.writing():
            assert run.is_held()
        assert not run.is_held()


def test_is_held_creates_no_lock_file(run: StoredRun) -> None:
    assert not run.is_held()
    assert not run.settings.lock(run.run_id).exists()


def test_locks_of_different_runs_are_independent(run: StoredRun) -> None:
    other = replace(run, run_id="fedcba", artifacts=run.artifacts / "other")
    with run.writing(), other.writing():
        assert run.is_held() and other.is_held()


def test_refusal_names_the_current_holder(run: StoredRun) -> None:
    with another_process(lambda say: train(run, say)) as (_, hears):
        hears()
    with another_process(lambda say: train(run, say)) as (holder, hears):
        assert hears() == b"writing"
        with pytest.raises(StorageError, match=rf"by process {holder} on"), run.writing():
            pass


def test_one_of_several_racing_writers_wins(run: StoredRun) -> None:
    for _ in range(RACES):
        gate_out, gate_into = os.pipe()

        def race(say: Callable[[bytes], None], gate: int = gate_out) -> None:
            os.read(gate, 1)
            train(run, say)

        with (
            another_process(race) as (_, one),
            another_process(race) as (_, other),
            another_process(race) as (_, third),
        ):
            os.write(gate_into, b"goo")
            said = sorted([one(), other(), third()])
        assert [words.split(b":")[0] for words in said] == [b"refused", b"refused", b"writing"]
        os.close(gate_out)
        os.close(gate_into)


def test_refusal_waits_for_the_name_of_a_new_holder(run: StoredRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def slowly(say: Callable[[bytes], None]) -> None:
        hostname = socket.gethostname()

        def gethostname() -> str:
            say(b"locked")
            time.sleep(0.2)
            return hostname

        monkeypatch.setattr(socket, "gethostname", gethostname)
        train(run, say)

    with another_process(slowly) as (holder, hears):
        assert hears() == b"locked"
        with pytest.raises(StorageError, match=rf"by process {holder} on"), run.writing():
            pytest.fail("two writers")


def test_is_held_does_not_block_a_writer(run: StoredRun, monkeypatch: pytest.MonkeyPatch) -> None:
    with run.writing():
        pass

    def ask(say: Callable[[bytes], None]) -> None:
        flock = storage.run_lock.fcntl.flock

        def slow_flock(*args: Any) -> None:
            flock(*args)
            say(b"asking")
            time.sleep(0.2)

        monkeypatch.setattr(storage.run_lock.fcntl, "flock", slow_flock)
        run.is_held()

    with another_process(ask) as (_, hears):
        assert hears() == b"asking"
        with run.writing():
            assert run.is_held()
