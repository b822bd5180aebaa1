"""Prefect draws an edge from each task to the tasks that read its unit."""

from __future__ import annotations

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import TaskRunResult
from prefect.context import FlowRunContext
from prefect.states import Completed
from prefect.utilities.engine import link_state_to_task_run_result

from flows.train import train
from storage.run_tags import FLOW_RUN
from storage.runs import open_tracking
from storage.units.unit import EXPERIENCE
from tasks.unit_reference import UnitReference


def cycle_edges(cycle: int) -> set[tuple[str, str]]:
    """The edges between the tasks of a cycle with two shards."""
    edges = set()
    for shard in (0, 1):
        played, swept = (f"{task}-{cycle:05d}-{shard}" for task in ("collect-episodes", "update-q-values"))
        edges |= {(played, swept), (played, f"optimize-{cycle:05d}"), (swept, f"optimize-{cycle:05d}")}
    return edges


def edges_between(before: str, after: str) -> set[tuple[str, str]]:
    """The edges from a task to those of the same cycle with the name `after`, one for each shard."""
    return {(before, f"{after}-{shard}") for shard in (0, 1)}


@pytest.mark.usefixtures("home", "prefect_server")
@pytest.mark.parametrize("overlap", ["no", "yes"])
def test_task_runs_are_linked_by_their_units(small: dict[str, object], overlap: str) -> None:
    overrides = {**small, "shards": 2, "overlap": overlap}
    run_id = train(cycles=3, name=f"linked-{overlap}", overrides=overrides)
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
    expected = set().union(*map(cycle_edges, (1, 2, 3)))
    expected |= {("optimize-00001", "optimize-00002"), ("optimize-00002", "optimize-00003")}
    if overlap == "no":
        for cycle in (1, 2):
            expected |= edges_between(f"optimize-{cycle:05d}", f"collect-episodes-{cycle + 1:05d}")
    else:
        expected |= edges_between("optimize-00001", "collect-episodes-00003")
        for cycle, shard in ((1, 0), (1, 1), (2, 0), (2, 1)):
            expected |= edges_between(f"collect-episodes-{cycle:05d}-{shard}", f"collect-episodes-{cycle + 1:05d}")
    assert edges == expected


def test_edges_come_from_references_and_not_from_their_parts() -> None:
    """Prefect finds a part by its address, at which another object may be by then."""
    with FlowRunContext.model_construct(run_results={}) as context:
        reference = UnitReference(EXPERIENCE, 300, "digest", {"score": 1.0})
        link_state_to_task_run_result(Completed(), reference)
        assert list(context.run_results) == [id(reference)]
