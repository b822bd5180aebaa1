"""Mark flow runs whose process is gone, and training runs whose writer is gone, so that they can be continued."""

from __future__ import annotations

from collections.abc import Callable, Collection
from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.exceptions import PrefectException
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import Cancelled, Crashed

from flows.failure import run_failure_command
from storage.errors import StorageError
from storage.run_catalog import mark_dead_runs
from storage.sweeps import mark_dead_sweeps

UNFINISHED = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]


class Reaper:
    """Marks the flow runs of one worker whose process is gone, and the training runs whose writer is gone.

    `running_flow_runs` returns the ids of the flow runs that have a process now.
    """

    def __init__(self, worker: str, running_flow_runs: Callable[[], Collection[str]]) -> None:
        self._worker, self._running_flow_runs = worker, running_flow_runs
        self._suspects: set[UUID] = set()

    def reap(self, without_worker: bool = False) -> list[str]:
        """Mark what is gone. If a server does not answer, do nothing; the next call tries again.

        The worker may be about to start the process of a flow run that has none. Such a flow run is therefore marked
        only when two calls in a row find it without a process.

        Args:
            without_worker: there is no worker, so flow runs are marked at once.

        Returns:
            A line for each marked run, with the command that continues it.
        """
        lines = []
        try:
            with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
                found = self._without_process()
                lines += [_mark(run) for run in found if without_worker or run.id in self._suspects]
            self._suspects = {run.id for run in found}
            lines += [
                f"run {run.name} was killed; resume with: dqn train --resume {run.run_id}" for run in mark_dead_runs()
            ]
            lines += [f"sweep {name} was killed; start it again to go on with it" for name in mark_dead_sweeps()]
        except (httpx.HTTPError, PrefectException, StorageError):
            pass
        return lines

    def _without_process(self) -> list[FlowRun]:
        wanted = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=UNFINISHED)))
        with get_client(sync_client=True) as client:
            runs = client.read_flow_runs(flow_run_filter=wanted)
        running = self._running_flow_runs()
        own = [run for run in runs if run.labels.get("prefect.worker.name") == self._worker]
        return [run for run in own if str(run.id) not in running]


def _mark(run: FlowRun) -> str:
    """Set the final state of a flow run without a process, run the failure command, and return a line about it."""
    retry = f"retry with: prefect flow-run retry {run.id}"
    cancelled = run.state is not None and run.state.is_cancelling()
    state: State = (Cancelled if cancelled else Crashed)(message=f"The process is gone; {retry}")
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run.id, state, force=True)
    if not cancelled:
        run_failure_command(None, run, state)
    return f"the process of flow run {run.name} is gone; {retry}"
