"""Mark what died without a word, so that it can go on: flow runs without a process, training runs without a writer."""

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

AT_WORK = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]


class Reaper:
    """Marks what died of all that one worker has taken, and says how each goes on.

    `flow_runs_at_work` tells the ids of the flow runs that have a process now.
    """

    def __init__(self, worker: str, flow_runs_at_work: Callable[[], Collection[str]]) -> None:
        self._worker, self._at_work = worker, flow_runs_at_work
        self._suspects: set[UUID] = set()

    def reap(self, sure: bool = False) -> list[str]:
        """Mark what died; what a person should read of it. Servers that do not answer are asked the next time.

        A flow run without a process may be about to get one: it counts as dead when it is found so twice, or
        at once if the caller is `sure`, because no worker is there.
        """
        lines = []
        try:
            with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
                found = self._without_process()
                lines += [_mark(run) for run in found if sure or run.id in self._suspects]
            self._suspects = {run.id for run in found}
            lines += [
                f"run {run.name} has died; go on with: dqn train --resume {run.run_id}" for run in mark_dead_runs()
            ]
        except (httpx.HTTPError, PrefectException, StorageError):
            pass
        return lines

    def _without_process(self) -> list[FlowRun]:
        wanted = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=AT_WORK)))
        with get_client(sync_client=True) as client:
            runs = client.read_flow_runs(flow_run_filter=wanted)
        at_work = self._at_work()
        taken = [run for run in runs if run.labels.get("prefect.worker.name") == self._worker]
        return [run for run in taken if str(run.id) not in at_work]


def _mark(run: FlowRun) -> str:
    """Give a flow run without a process its last state, and run the user's command; what to say of it."""
    go_on = f"go on with: prefect flow-run retry {run.id}"
    cancelled = run.state is not None and run.state.is_cancelling()
    state: State = (Cancelled if cancelled else Crashed)(message=f"Its process is gone; {go_on}")
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run.id, state, force=True)
    if not cancelled:
        run_failure_command(None, run, state)
    return f"flow run {run.name} has died; {go_on}"
