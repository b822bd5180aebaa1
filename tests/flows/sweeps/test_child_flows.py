"""Flows in processes of their own: whatever ends a process, the sweep learns it as one of four outcomes."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest

from flows.sweeps.child_flows import FlowFailed, FlowKilled, Processes
from storage.errors import StorageError
from tasks.progress import report_cycle

pytestmark = pytest.mark.usefixtures("prefect_server")

SUMMARY = {"counter/cycles": 3.0, "counter/states": 192.0}


def ending(how: str) -> None:
    """Stands for a flow, which runs in the child."""
    report_cycle(SUMMARY)
    if how == "failure":
        raise ValueError("lanes is 0")
    if how == "unexpected failure":
        raise KeyError("weights")
    if how == "full disk":
        raise StorageError("the disk is full")
    if how.startswith("SIG"):
        os.kill(os.getpid(), signal.Signals[how])
        while True:  # signal.pause() would not end if another thread received the signal
            time.sleep(0.01)


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ("failure", FlowFailed, "^lanes is 0$"),
        ("unexpected failure", FlowFailed, "^KeyError: 'weights'$"),
        ("full disk", StorageError, "^the disk is full$"),
        ("SIGKILL", FlowKilled, "its process was killed, which the kernel does when memory is full"),
        ("SIGTERM", FlowKilled, "its process was interrupted"),
        ("SIGINT", FlowKilled, "its process was interrupted"),
    ],
)
def test_end_of_a_process_is_reported(how: str, error: type[Exception], message: str) -> None:
    if how == "SIGINT" and signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        pytest.skip("SIGINT is ignored, as in a background process of a shell")
    followed: list[dict[str, Any]] = []
    with pytest.raises(error, match=message):
        Processes({"train": ending}).run("train", {"how": how}, "key", followed.append)
    assert followed == [SUMMARY]


def test_finished_flow_raises_nothing() -> None:
    followed: list[dict[str, Any]] = []
    Processes({"train": ending}).run("train", {"how": "well"}, "key", followed.append)
    assert followed == [SUMMARY]


def test_stopped_processes_start_nothing_more() -> None:
    processes = Processes({"train": ending})
    processes.stop()
    with pytest.raises(StorageError, match="the sweep stops"):
        processes.run("train", {"how": "well"}, "key", lambda summary: None)
