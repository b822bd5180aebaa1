"""Kills and failures in the middle of a real training; `make crash-test` runs many more of each."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from harness import CYCLES, STAGES, Fault, Laboratory, build, outcome, start

KILLS = int(os.environ.get("CRASH_KILLS", "3"))
OPERATIONS = int(os.environ.get("CRASH_OPERATIONS", "1"))  # 0 means every one
REPEATS = int(os.environ.get("CRASH_REPEATS", "1"))


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> Laboratory:
    return build(tmp_path_factory.mktemp("crash"))


def chosen_operations(laboratory: Laboratory, purpose: int) -> list[int]:
    """The operations at which to fail: every one, or an even sample that differs by purpose."""
    every = np.arange(1, laboratory.operations + 1)
    if not OPERATIONS:
        return every.tolist()
    chosen = np.random.default_rng(purpose).choice(every, min(OPERATIONS, len(every)), replace=False)
    return sorted(chosen.tolist())


def test_the_same_seed_gives_the_same_run_and_another_seed_another(
    laboratory: Laboratory, tmp_path_factory: pytest.TempPathFactory
) -> None:
    for _ in range(REPEATS):
        laboratory.reset()
        assert laboratory.finish() == laboratory.reference
    other = build(tmp_path_factory.mktemp("other-seed"), seed=1)
    assert other.reference.digest != laboratory.reference.digest


def test_a_run_killed_at_random_instants_ends_as_if_nothing_had_happened(laboratory: Laboratory) -> None:
    draws = np.random.default_rng(0)
    stages = CYCLES * len(STAGES)
    killed = 0
    for number in range(KILLS):
        laboratory.reset()
        for _ in range(5 if number % 10 == 9 else 1):
            child = start(laboratory.home, laboratory.run_id)
            child.kill_in(number % stages, draws.random(), laboratory.durations)
            killed += child.join() == -9
            laboratory.whole_units()
        assert laboratory.finish() == laboratory.reference
    assert killed >= KILLS / 2, "most of them were in time"
    print(f"{killed} kills in {KILLS} runs")


def test_a_kill_at_any_operation_leaves_the_old_state_or_the_new(laboratory: Laboratory) -> None:
    for at in chosen_operations(laboratory, 1):
        laboratory.reset()
        assert start(laboratory.home, laboratory.run_id, Fault(at)).join() == -9
        laboratory.whole_units()
        assert laboratory.finish() == laboratory.reference


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO], ids=["full disk", "I/O error"])
@pytest.mark.parametrize("forever", [False, True], ids=["once", "for good"])
def test_an_error_at_any_operation_is_told_and_corrupts_nothing(
    laboratory: Laboratory, error: int, forever: bool
) -> None:
    for at in chosen_operations(laboratory, error + forever):
        laboratory.reset()
        status = start(laboratory.home, laboratory.run_id, Fault(at, error, forever)).join()
        # Only what removes leftovers may fail without harm.
        assert status in (error, 0), f"operation {at} ended with {status}"
        laboratory.whole_units()
        assert laboratory.finish() == laboratory.reference


def test_metrics_are_in_mlflow_exactly_once(laboratory: Laboratory) -> None:
    assert laboratory.reference.doubled == 0
    assert len({(name, step) for name, step, _ in laboratory.reference.metrics}) == len(laboratory.reference.metrics)
    laboratory.reset()
    for stage in range(len(STAGES)):
        child = start(laboratory.home, laboratory.run_id)
        child.kill_in(stage, 0.9, laboratory.durations)
    assert laboratory.finish() == laboratory.reference


def test_a_run_goes_on_from_mlflow_alone(laboratory: Laboratory) -> None:
    import shutil

    laboratory.reset()
    child = start(laboratory.home, laboratory.run_id)
    child.kill_in(4, 0.5, laboratory.durations)
    shutil.rmtree(laboratory.home / "replay", ignore_errors=True)
    done = laboratory.finish()
    assert (done.digest, done.metrics, done.doubled) == (
        laboratory.reference.digest,
        laboratory.reference.metrics,
        laboratory.reference.doubled,
    )


def test_a_disk_that_fills_up_stops_the_run_cleanly_and_room_lets_it_go_on(
    laboratory: Laboratory, tmp_path: Path
) -> None:
    import shutil
    import subprocess

    sizes = np.linspace(75, 9, int(os.environ.get("CRASH_SIZES", "1")))
    for size in sizes:
        laboratory.reset()
        template = tmp_path / "moved"
        shutil.rmtree(template, ignore_errors=True)
        shutil.move(laboratory.home, template)
        laboratory.home.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size:.0f}m", "tmpfs", str(laboratory.home)]
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("a small disk can be mounted by root only")
        try:
            shutil.copytree(template, laboratory.home, dirs_exist_ok=True)
            status = start(laboratory.home, laboratory.run_id).join()
            assert status in (0, 1, errno.ENOSPC)
            laboratory.whole_units()
            subprocess.run(["mount", "-o", "remount,size=500m", str(laboratory.home)], check=True)
            assert laboratory.finish() == laboratory.reference
        finally:
            subprocess.run(["umount", str(laboratory.home)], check=True)
            laboratory.home.rmdir()


def test_reading_the_outcome_notices_a_difference(laboratory: Laboratory) -> None:
    laboratory.reset()
    laboratory.finish()
    (laboratory.home / "stray").write_text("left over")
    assert outcome(laboratory.home, laboratory.run_id) != laboratory.reference
