"""Sweep one cycle's experience backwards and commit its targets."""

from __future__ import annotations

from time import perf_counter

from prefect import task
from prefect.cache_policies import NO_CACHE

from dqn.learning.sweep import SweepRule, backward_sweep
from dqn.metrics import sweep_metrics
from storage.formats.experience import write_targets
from storage.runs import open_run
from storage.units.unit import CHECKPOINT, EXPERIENCE, TARGETS
from tasks.process_cache import keep_targets, metadata_of, played, unit_at_hand
from tasks.progress import report
from tasks.unit_reference import UnitReference, made_by, name_of_part, reference


@task(name="update-q-values", task_run_name=name_of_part("update-q-values"), cache_policy=NO_CACHE)
def update_q_values(run_id: str, cycle: int, shard: int = 0) -> UnitReference:
    """Carry the rewards of a shard's cycle `cycle` back to the states before them and commit the targets."""
    run = open_run(run_id)
    kind = run.kinds(TARGETS)[shard]
    source = unit_at_hand(run, run.kinds(EXPERIENCE)[shard], cycle)
    inputs = {str(source.kind): source.digest}
    if unit := run.made(kind, cycle, inputs):
        return reference(unit)
    metadata = metadata_of(run, unit_at_hand(run, CHECKPOINT, cycle - 1))
    experience = played(source)
    report("update-q-values", cycle, 0, experience.states_played)
    with run.commit(kind, cycle, inputs, made_by()) as draft:
        began = perf_counter()
        targets = backward_sweep(experience, SweepRule.of(metadata.config))
        draft.speed["update-q-values"] = experience.states_played / (perf_counter() - began)
        if run.shards == 1:
            draft.metrics += sweep_metrics(metadata.config, experience, targets, metadata.counters.states)
        write_targets(draft.directory, targets)
    keep_targets(draft.unit, targets)
    return reference(draft.unit)
