"""Disks that are full or broken under a real training; `make crash-test` does it far more often."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest
from harness import Laboratory, Outcome, chosen, enlarge, small_disk
from trainer import FAILED, Fault


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO], ids=["full disk", "I/O error"])
@pytest.mark.parametrize("forever", [False, True], ids=["once", "for good"])
def test_an_error_at_any_operation_is_told_and_corrupts_nothing(
    one_cycle: Laboratory, one_cycle_reference: Outcome, operations: int, error: int, forever: bool
) -> None:
    failed = 0
    for at in sorted({1, *chosen(operations, purpose=error + forever)}):
        one_cycle.reset()
        child = one_cycle.start(Fault(at, error, forever))
        status = child.join()
        assert status in (0, FAILED), f"operation {at} ended with {status}"
        if status:
            failed += 1
            message = child.said()[-2]
            assert isinstance(message, str) and message.strip() and "\n" not in message, (at, message)
        one_cycle.units()
        assert one_cycle.finish() == one_cycle_reference, f"operation {at}"
    print(f"{failed} failed")
    assert failed or not forever, "the first operation cannot be done without for good"


def test_a_disk_that_fills_up_stops_the_run_cleanly_and_room_lets_it_go_on(
    laboratory: Laboratory, reference: Outcome
) -> None:
    failed = 0
    count = int(os.environ.get("CRASH_SIZES", "1"))
    for mebibytes in np.linspace(75, 9, count) if count > 1 else [30]:
        with small_disk(laboratory, round(mebibytes)):
            child = laboratory.start()
            status = child.join()
            assert status in (0, FAILED), (mebibytes, child.said())
            failed += status == FAILED
            laboratory.units()
            enlarge(laboratory)
            assert laboratory.finish() == reference, mebibytes
    print(f"{failed} of {count} sizes were too small")
    assert failed, "at least one was"
