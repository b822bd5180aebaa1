"""Several calls at the same time, each in a thread of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from threading import Event

import torch


def run_in_threads(calls: Sequence[Callable[[Event], None]], most: int, torch_threads: int) -> None:
    """Make the calls, at most `most` of them at a time, and wait for all.

    Each is told by an event that another one failed, or that this thread was interrupted, and returns soon then.
    Each computes with `torch_threads` of torch.

    Raises:
        Exception: what the first of the calls that failed has raised.
    """
    stopped, threads = Event(), torch.get_num_threads()
    with ThreadPoolExecutor(most, initializer=torch.set_num_threads, initargs=(torch_threads,)) as pool:
        try:
            made = [pool.submit(call, stopped) for call in calls]
            wait(made, return_when=FIRST_EXCEPTION)
        finally:  # one failed, or this thread was interrupted, or all are done
            stopped.set()
    torch.set_num_threads(threads)  # some libraries know but one number for all threads
    for call in made:
        call.result()
