"""Disks that are full or broken under a real training; `make crash-test` does it far more often."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import numpy as np
import pytest
from harness import Laboratory, Outcome, chosen, enlarge, small_disk
from trainer import FAILED, Fault

Tell = Callable[[int, str, str], None]


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO], ids=["ENOSPC", "EIO"])
@pytest.mark.parametrize("forever", [False, True], ids=["once", "for good"])
def test_an_error_at_any_operation_is_told_and_corrupts_nothing(
    one_cycle: Laboratory, one_cycle_reference: Outcome, operations: int, error: int, forever: bool, figure: Tell
) -> None:
    failed = 0
    every = sorted({1, *chosen(operations, purpose=error + forever)})
    for at in every:
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
    assert failed or not forever, "the first operation cannot be done without for good"
    tried = (
        f"{errno.errorcode[error]} {'for good from' if forever else 'once at'} {len(every)} of {operations} operations"
    )
    figure(5, tried, f"{failed} times told in one line, else overcome; {len(every)} undisturbed digests after resuming")


def test_a_disk_that_fills_up_stops_the_run_cleanly_and_room_lets_it_go_on(
    laboratory: Laboratory, reference: Outcome, figure: Tell
) -> None:
    failed = 0
    count = int(os.environ.get("CRASH_SIZES", "1"))
    for mebibytes in np.linspace(20, 5, count) if count > 1 else [12]:
        with small_disk(laboratory, mebibytes):
            child = laboratory.start()
            status = child.join()
            assert status in (0, FAILED), (mebibytes, child.said())
            failed += status == FAILED
            laboratory.units()
            enlarge(laboratory)
            assert laboratory.finish() == reference, mebibytes
    assert failed, "at least one was too small"
    came = f"{failed} too small, told in one line; {count} undisturbed digests once there is room"
    figure(5, f"a file system of {count} sizes filled up", came)
