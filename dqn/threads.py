"""Several calls at the same time, each in its own thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from threading import Event

import torch


def run_in_threads(calls: Sequence[Callable[[Event], None]], most: int, torch_threads: int) -> None:
    """Run the calls, at most `most` of them at a time, and wait for all.

    Args:
        calls: each takes an event, which is set when another call has failed or this thread was interrupted, and must
            return soon after that.
        most: highest number of threads.
        torch_threads: number of torch's threads in each call.

    Raises:
        Exception: the exception of the first call, in the order of `calls`, that failed.
    """
    stopped, threads = Event(), torch.get_num_threads()
    with ThreadPoolExecutor(most, initializer=torch.set_num_threads, initargs=(torch_threads,)) as pool:
        try:
            made = [pool.submit(call, stopped) for call in calls]
            wait(made, return_when=FIRST_EXCEPTION)
        finally:  # a call failed, this thread was interrupted, or all calls are done
            stopped.set()
    torch.set_num_threads(threads)  # some libraries have one number for all threads
    for call in made:
        call.result()


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch compute with `count` threads during the block.

    With one state at a time, more threads than one mostly wait for each other.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
