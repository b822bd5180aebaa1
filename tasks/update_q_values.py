"""Sweep one cycle's experience backwards and commit its targets."""

from __future__ import annotations

from time import perf_counter

from prefect import task
from prefect.cache_policies import NO_CACHE

from dqn.statistics import sweep_metrics
from dqn.sweep import SweepRule, backward_sweep
from storage.experience import read_experience, write_targets
from storage.runs import open_run
from tasks.progress import report
from tasks.reference import UnitReference, made_by, reference

KIND = "targets"


@task(name="update-q-values", task_run_name="update-q-values-{cycle:05d}", cache_policy=NO_CACHE)
def update_q_values(run_id: str, cycle: int) -> UnitReference:
    """Carry the rewards of cycle `cycle` back to the states before them and commit the targets."""
    run = open_run(run_id)
    played = run.unit("experience", cycle)
    inputs = {"experience": played.digest}
    if unit := run.made(KIND, cycle, inputs):
        run.publish(unit)
        return reference(unit)
    facts = run.facts(run.unit("checkpoint", cycle - 1))
    experience = read_experience(played.directory, with_states=False)
    report("update-q-values", cycle, 0, experience.states_played)
    with run.commit(KIND, cycle, inputs, made_by()) as draft:
        began = perf_counter()
        targets = backward_sweep(experience, SweepRule.of(facts.config))
        draft.speed["update-q-values"] = experience.states_played / (perf_counter() - began)
        draft.metrics += sweep_metrics(facts.config, experience, targets, facts.counters.states)
        write_targets(draft.directory, targets)
    unit = run.unit(KIND, cycle)
    run.publish(unit)
    return reference(unit)
