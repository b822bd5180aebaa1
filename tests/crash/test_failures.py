"""Disks that are full or broken during a real training; `make crash-test` tests every operation on files."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import numpy as np
import pytest
from harness import CrashRun, Outcome, enlarge_disk, sample_operations, small_disk
from trainer import FAILED, Fault

Figure = Callable[[int, str, str], None]


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO], ids=["ENOSPC", "EIO"])
@pytest.mark.parametrize("permanent", [False, True], ids=["once", "permanent"])
def test_disk_error_ends_in_one_line_and_corrupts_nothing(
    one_cycle_run: CrashRun,
    one_cycle_reference: Outcome,
    operation_count: int,
    error: int,
    permanent: bool,
    figure: Figure,
) -> None:
    """The training either overcomes the error or ends with a one-line message; the resumed run is undisturbed."""
    failed = 0
    operations = sorted({1, *sample_operations(operation_count, purpose=error + permanent)})
    for at in operations:
        one_cycle_run.reset()
        child = one_cycle_run.start(Fault(at, error, permanent))
        status = child.join()
        assert status in (0, FAILED), f"operation {at} ended with status {status}"
        if status:
            failed += 1
            message = child.messages()[-2]
            assert isinstance(message, str) and message.strip() and "\n" not in message, (at, message)
        one_cycle_run.units()
        assert one_cycle_run.finish() == one_cycle_reference, f"operation {at}"
    assert failed or not permanent  # no training can overcome a permanent error of the first operation
    name = errno.errorcode[error]
    fault = f"permanent {name} starting" if permanent else f"a single {name}"
    figure(
        5,
        f"{fault} at {len(operations)} of {operation_count} operations",
        f"{failed} times a one-line error, otherwise overcome; {len(operations)} undisturbed digests after resuming",
    )


def test_full_disk_stops_the_run_and_space_resumes_it(run: CrashRun, reference: Outcome, figure: Figure) -> None:
    failed = 0
    count = int(os.environ.get("CRASH_SIZES", "1"))
    run.reset()
    stored = sum(path.stat().st_size for path in run.home.rglob("*") if path.is_file()) / 2**20
    for free in np.linspace(25, 0.5, count) if count > 1 else [6]:
        mebibytes = stored + free
        with small_disk(run, mebibytes):
            child = run.start()
            status = child.join()
            assert status in (0, FAILED), (mebibytes, child.messages())
            failed += status == FAILED
            run.units()
            enlarge_disk(run)
            assert run.finish() == reference, mebibytes
    assert failed  # at least one of the file systems is too small
    figure(
        5,
        f"a file system of {count} sizes filled up",
        f"{failed} too small, each with a one-line error; {count} undisturbed digests once there is space",
    )
