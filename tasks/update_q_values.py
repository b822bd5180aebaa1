"""Sweep one cycle's experience backwards and commit its targets."""

from __future__ import annotations

from time import perf_counter

from prefect import task
from prefect.cache_policies import NO_CACHE

from dqn.statistics import sweep_metrics
from dqn.sweep import SweepRule, backward_sweep
from storage.experience import write_targets
from storage.runs import open_run
from tasks.live import facts_of, keep_targets, played, unit_at_hand
from tasks.progress import report
from tasks.reference import UnitReference, made_by, reference

KIND = "targets"


@task(name="update-q-values", task_run_name="update-q-values-{cycle:05d}", cache_policy=NO_CACHE)
def update_q_values(run_id: str, cycle: int) -> UnitReference:
    """Carry the rewards of cycle `cycle` back to the states before them and commit the targets."""
    run = open_run(run_id)
    source = unit_at_hand(run, "experience", cycle)
    inputs = {"experience": source.digest}
    if unit := run.made(KIND, cycle, inputs):
        return reference(unit)
    facts = facts_of(run, unit_at_hand(run, "checkpoint", cycle - 1))
    experience = played(source)
    report("update-q-values", cycle, 0, experience.states_played)
    with run.commit(KIND, cycle, inputs, made_by()) as draft:
        began = perf_counter()
        targets = backward_sweep(experience, SweepRule.of(facts.config))
        draft.speed["update-q-values"] = experience.states_played / (perf_counter() - began)
        draft.metrics += sweep_metrics(facts.config, experience, targets, facts.counters.states)
        write_targets(draft.directory, targets)
    keep_targets(draft.unit, targets)
    return reference(draft.unit)
