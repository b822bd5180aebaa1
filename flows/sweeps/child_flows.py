"""Flow runs that a sweep starts: in processes of this machine, or as flow runs of deployments."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection
from typing import Any, NoReturn, Protocol

import httpx
from prefect import Flow
from prefect.client.schemas.objects import State
from prefect.context import hydrated_context, serialize_context
from prefect.deployments import run_deployment

from flows.server.processes import exit_after_draining
from storage.errors import StorageError, one_line
from tasks.progress import progress

Follow = Callable[[dict[str, float]], None]  # receives the summary of each finished cycle

DEPLOYMENTS = {"train": "dqn/train", "evaluate": "dqn-evaluate/evaluate"}

_STOP_SECONDS = 60
_MEMORY_KILL = "its process was killed, which the kernel does when memory is full"


class FlowFailed(Exception):
    """A flow run has failed for a reason of its own, such as a value that is not allowed. The message is one line."""


class FlowKilled(Exception):
    """The process of a flow run has died, so that it can be run again."""


class ChildFlows(Protocol):
    """How a sweep runs other flows."""

    end_with_the_sweep: bool  # whether the flow runs die when the process of the sweep is killed

    def run(self, flow: str, parameters: Mapping[str, Any], key: str, follow: Follow) -> None:
        """Run a flow to its end.

        Args:
            flow: `train` or `evaluate`.
            parameters: of the flow.
            key: identifies this flow run among all; the same key never runs twice.
            follow: called with the summary of each finished cycle, if it is known.

        Raises:
            FlowFailed: the flow run has failed for a reason of its own.
            FlowKilled: its process has died.
            StorageError: a server does not answer, or the disk is full.
        """

    def stop(self) -> None:
        """Stop all flow runs that were started in this process."""


class Deployments:
    """Runs each flow as a flow run of its deployment, wherever a worker takes it."""

    end_with_the_sweep = False

    def run(self, flow: str, parameters: Mapping[str, Any], key: str, follow: Follow) -> None:
        """See `ChildFlows.run`."""
        run: Any = run_deployment(
            DEPLOYMENTS[flow], parameters=dict(parameters), idempotency_key=key, poll_interval=2, timeout=None
        )
        state: State = run.state
        if state.is_completed():
            return
        message = (state.message or state.name or "failed").splitlines()[0]
        if state.is_crashed():
            raise FlowKilled(message)
        raise FlowFailed(message)

    def stop(self) -> None:
        """Leave the flow runs to their workers."""


class Processes:
    """Runs each flow in a process of its own on this machine, as a child of the flow run that creates this object."""

    end_with_the_sweep = True

    def __init__(self, flows: Mapping[str, Callable[..., Any]]) -> None:
        self._flows, self._context = flows, serialize_context()
        # A child cannot receive the flow object, whose function has the name of the flow. It needs no more than the
        # ids of the flow run.
        self._context["flow_run_context"].pop("flow", None)
        self._running: set[Any] = set()
        self._stopping = threading.Event()

    def run(self, flow: str, parameters: Mapping[str, Any], key: str, follow: Follow) -> None:
        """See `ChildFlows.run`."""
        if self._stopping.is_set():
            raise StorageError("the sweep stops")
        spawn = get_context("spawn")
        received, sent = spawn.Pipe(duplex=False)
        process = spawn.Process(target=_run_in_child, args=(self._flows[flow], dict(parameters), self._context, sent))
        process.start()
        sent.close()
        self._running.add(process)
        try:
            outcome, text = _outcome(received, follow)
        finally:
            process.join()
            self._running.discard(process)
        if self._stopping.is_set():
            raise StorageError("the sweep stops")
        if outcome == "interrupted":  # alone, by a signal that somebody sent
            raise FlowKilled("its process was interrupted")
        if outcome == "killed":
            raise FlowKilled(_MEMORY_KILL if process.exitcode == -signal.SIGKILL else f"status {process.exitcode}")
        if outcome == "failed":
            raise FlowFailed(text)
        if outcome == "away":
            raise StorageError(text)

    def stop(self) -> None:
        """Interrupt the processes, and wait until they have stored what they have."""
        self._stopping.set()
        processes = list(self._running)
        for process in processes:
            process.terminate()
        for process in processes:
            process.join(_STOP_SECONDS)
            process.kill()


def _outcome(received: Connection, follow: Follow) -> tuple[str, str]:
    """Pass on what a child sends, until its last message; `killed` if there is none."""
    try:
        while True:
            kind, content = received.recv()
            if kind != "summary":
                return kind, content
            follow(content)
    except (EOFError, OSError):
        return "killed", ""


class _Forward(logging.Handler):
    """Sends the summary of each finished cycle to the sweep."""

    def __init__(self, sent: Connection) -> None:
        super().__init__()
        self._sent = sent

    def emit(self, record: logging.LogRecord) -> None:
        if summary := getattr(record, "summary", None):
            self._sent.send(("summary", dict(summary)))


def _run_in_child(
    flow: Callable[..., Any], parameters: dict[str, Any], context: dict[str, Any], sent: Connection
) -> None:
    """Run a flow in this process, as a child of the flow run whose context was serialized."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    if context["flow_run_context"]:
        context["flow_run_context"]["flow"] = Flow(_run_in_child, name="dqn-sweep")
    with _expected_errors(sent), hydrated_context(context):
        handler = _Forward(sent)
        progress.addHandler(handler)
        try:
            flow(**parameters)
        finally:
            progress.removeHandler(handler)
    # Else Prefect would wait at the end of the process for a server that is gone.
    exit_after_draining(0)


@contextmanager
def _expected_errors(sent: Connection) -> Iterator[None]:
    """Send how the block ended."""
    try:
        yield
    except KeyboardInterrupt:
        outcome = "interrupted", ""
    except httpx.TransportError as error:
        outcome = "away", f"the Prefect server does not answer ({one_line(error)})"
    except (StorageError, OSError) as error:
        outcome = "away", one_line(error)
    except Exception as error:  # noqa: BLE001 - whatever happened, it is the reason why the trial failed
        text = (str(error).strip().splitlines() or [""])[0]
        known = isinstance(error, ValueError | MemoryError)
        outcome = "failed", text if text and known else one_line(error)
    else:
        outcome = "completed", ""
    sent.send(outcome)
    sent.close()


def _interrupt(number: int, frame: Any) -> NoReturn:
    raise KeyboardInterrupt


def _end_with_parent() -> None:
    """End this process when the sweep's process is gone. Committed units stay, and the sweep goes on from them."""
    parent = parent_process()
    assert parent
    parent.join()
    os._exit(1)
