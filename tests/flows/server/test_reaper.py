"""Flow runs whose process is gone, as the server has them after the worker and all its processes were killed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.states import Cancelling, Completed, Pending, Running, Scheduled

from flows.server.reaper import Reaper
from storage.runs import create_run, open_tracking

pytestmark = pytest.mark.usefixtures("home", "prefect_server")


@pytest.fixture
def client() -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client


def flow_run_of(client: SyncPrefectClient, state: State, worker: str = "ours") -> FlowRun:
    """Create a flow run of `worker` in `state`."""

    @flow(name="reaped")
    def reaped() -> None: ...

    run = client.create_flow_run(reaped, state=Scheduled())
    client.set_flow_run_state(run.id, state, force=True)
    client.update_flow_run_labels(run.id, {"prefect.worker.name": worker})
    return run


def state_of(client: SyncPrefectClient, run: FlowRun) -> State:
    state = client.read_flow_run(run.id).state
    assert state is not None
    return state


def test_reaper_marks_flow_runs_at_the_second_call(
    client: SyncPrefectClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only flow runs of its own worker, without a process, in two calls in a row."""
    monkeypatch.setenv("DQN_ON_FAILURE", f'echo "$DQN_FLOW_RUN $DQN_STATE" >> {tmp_path / "failures"}')
    killed, cancelled, starting = (flow_run_of(client, state) for state in (Running(), Running(), Pending()))
    client.set_flow_run_state(cancelled.id, Cancelling(), force=True)
    alive = flow_run_of(client, Running())
    theirs = flow_run_of(client, Running(), worker="another machine's")
    waiting, done = flow_run_of(client, Scheduled()), flow_run_of(client, Completed())
    running = {str(alive.id)}
    reaper = Reaper("ours", lambda: running)
    assert not [line for line in reaper.reap() if line.startswith("the process of flow run")]
    running.add(str(starting.id))
    lines = reaper.reap()
    assert sum(line.startswith("the process of flow run") for line in lines) == 2, lines
    assert f"the process of flow run {killed.name} is gone; retry with: prefect flow-run retry {killed.id}" in lines
    crashed = state_of(client, killed)
    assert crashed.type == StateType.CRASHED
    assert crashed.message == f"The process is gone; retry with: prefect flow-run retry {killed.id}"
    assert state_of(client, cancelled).type == StateType.CANCELLED
    left = {run.id: state_of(client, run).type.name for run in (alive, starting, theirs, waiting, done)}
    assert list(left.values()) == ["RUNNING", "PENDING", "RUNNING", "SCHEDULED", "COMPLETED"]
    assert (tmp_path / "failures").read_text() == f"{killed.id} Crashed\n"


def test_reaper_without_worker_marks_flow_runs_at_once(client: SyncPrefectClient) -> None:
    starting = flow_run_of(client, Pending(), worker="dead")
    assert [line for line in Reaper("dead", set).reap(without_worker=True) if str(starting.id) in line]
    assert state_of(client, starting).type == StateType.CRASHED


def test_reaper_marks_a_training_run_without_writer_as_killed(small: dict[str, object]) -> None:
    from dqn.envs.games import action_names
    from flows.parameters import requested_config

    config = requested_config("fast", small)
    run = create_run(config, action_names(config.game), "left-running", {})
    assert f"run left-running was killed; resume with: dqn train --resume {run.run_id}" in Reaper("ours", set).reap()
    assert open_tracking().get_run(run.run_id).info.status == "KILLED"


def test_reaper_marks_a_sweep_without_writer_as_killed() -> None:
    from storage.sweeps import open_sweep

    with open_sweep("left-searching", "ALE/Breakout-v5", {}) as stored:
        assert not [line for line in Reaper("ours", set).reap() if "left-searching" in line]
    assert "sweep left-searching was killed; start it again to go on with it" in Reaper("ours", set).reap()
    assert open_tracking().get_run(stored.run_id).info.status == "KILLED"


def test_reaper_does_nothing_while_the_server_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx

    def fail(self: object) -> None:
        raise httpx.ConnectError("refused")

    monkeypatch.setattr(SyncPrefectClient, "read_flow_runs", lambda *_, **__: fail(None))
    assert Reaper("ours", set).reap() == []
