"""Sweep one cycle's experience backwards and commit its targets."""

from __future__ import annotations

from dataclasses import replace
from time import perf_counter

from prefect import task
from prefect.cache_policies import NO_CACHE

from dqn.learning.sweep import SweepRule, backward_sweep
from dqn.metrics import sweep_metrics
from storage.formats.experience import write_targets
from storage.runs import open_run
from storage.units.unit import TARGETS
from tasks.process_cache import CACHE
from tasks.progress import report
from tasks.unit_reference import UnitReference, made_by, task_run_name

NAME = "update-q-values"


@task(name=NAME, task_run_name=task_run_name(NAME), cache_policy=NO_CACHE)
def update_q_values(run_id: str, experience: UnitReference) -> UnitReference:
    """Carry the rewards in `experience` back to the states before them and commit the targets."""
    run, cycle = open_run(run_id), experience.cycle
    kind, inputs = replace(TARGETS, shard=experience.kind.shard), {str(experience.kind): experience.digest}
    if unit := run.made(kind, cycle, inputs):
        return UnitReference.of(unit)
    played = CACHE.played([experience.open(run)])
    report(NAME, cycle, 0, played.states_played)
    with run.commit(kind, cycle, inputs, made_by()) as draft:
        began = perf_counter()
        targets = backward_sweep(played, SweepRule.of(run.config))
        draft.speed[NAME] = played.states_played / (perf_counter() - began)
        if run.shards == 1:  # metrics of all shards together are logged by `optimize`
            draft.metrics += sweep_metrics(run.config, played, targets, run.config.states_before(cycle))
        write_targets(draft.directory, targets)
    CACHE.put_targets(draft.unit, targets)
    return UnitReference.of(draft.unit)
