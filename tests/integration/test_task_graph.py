"""Prefect draws an edge from each task to the tasks that read its unit."""

from __future__ import annotations

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import TaskRunResult

from flows.train import train
from storage.runs import open_tracking
from storage.tracking import FLOW_RUN

PARTS = [(cycle, shard) for cycle in ("00001", "00002") for shard in (0, 1)]


@pytest.mark.usefixtures("home", "prefect_server")
def test_task_runs_are_linked_by_their_units(small: dict[str, object]) -> None:
    run_id = train(cycles=2, name="linked", overrides={**small, "lanes": 4, "shards": 2})
    flow_run = open_tracking().get_run(run_id).data.tags[FLOW_RUN]
    with get_client(sync_client=True) as client:
        runs = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run])))
    names = {run.id: run.name for run in runs}
    edges = {
        (names[source.id], run.name)
        for run in runs
        for sources in run.task_inputs.values()
        for source in sources
        if isinstance(source, TaskRunResult)
    }
    assert edges == {
        *((f"collect-episodes-{cycle}-{shard}", f"update-q-values-{cycle}-{shard}") for cycle, shard in PARTS),
        *((f"collect-episodes-{cycle}-{shard}", f"optimize-{cycle}") for cycle, shard in PARTS),
        *((f"update-q-values-{cycle}-{shard}", f"optimize-{cycle}") for cycle, shard in PARTS),
        ("optimize-00001", "collect-episodes-00002-0"),
        ("optimize-00001", "collect-episodes-00002-1"),
        ("optimize-00001", "optimize-00002"),
    }
