"""Power loss in the middle of a real training; `make crash-test` tests every operation on files."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import CrashRun, Outcome, sample_operations
from power import PowerLoss

pytestmark = pytest.mark.crash


def test_power_loss_at_any_operation_loses_no_commit(
    ram_directory: Path,
    one_cycle_run: CrashRun,
    one_cycle_reference: Outcome,
    operation_count: int,
    figure: Callable[[int, str, str], None],
) -> None:
    """After the power loss, the resumed run has the outcome of the undisturbed one."""
    if not ram_directory.is_relative_to("/dev/shm"):
        pytest.skip("this test needs tmpfs at /dev/shm, because tmpfs never reuses an inode number")
    operations = sample_operations(operation_count, purpose=3)
    for at in operations:
        loss = PowerLoss(one_cycle_run, at)
        for choose in (lambda versions: versions[0], random.Random(at).choice):
            loss.restore(choose)
            assert loss.lost_commits() == [], f"operation {at}"
            assert one_cycle_run.finish_after_damage() == one_cycle_reference, f"operation {at}"
    count = f"{len(operations)} of {operation_count} operations of a cycle, including those of SQLite"
    figure(
        4,
        f"power lost at {count}: only fsynced data remains, or also a part of the rest",
        f"0 acknowledged commits lost; {2 * len(operations)} undisturbed digests after resuming",
    )
