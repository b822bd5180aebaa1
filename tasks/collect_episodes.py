"""Play one cycle's states and commit them."""

from __future__ import annotations

from time import perf_counter

from prefect import task
from prefect.cache_policies import NO_CACHE

from dqn.cycle import collect
from dqn.envs.histories import advance
from dqn.envs.lanes import closed_on_failure
from dqn.metrics import play_metrics, score_metrics
from storage.formats.experience import write_experience
from storage.runs import open_run
from storage.units.unit import EXPERIENCE
from tasks.process_cache import CACHE
from tasks.progress import report
from tasks.unit_reference import UnitReference, made_by, task_run_name

NAME = "collect-episodes"


@task(name=NAME, task_run_name=task_run_name(NAME), cache_policy=NO_CACHE)
def collect_episodes(run_id: str, checkpoint: UnitReference, shard: int = 0) -> UnitReference:
    """Play the lanes of a shard with the network of `checkpoint`; commit states and Q-values of the next cycle."""
    run, cycle = open_run(run_id), checkpoint.cycle + 1
    kind, inputs = EXPERIENCE.of_shards(run.shards)[shard], {"checkpoint": checkpoint.digest}
    if unit := run.made(kind, cycle, inputs):
        return UnitReference.of(unit)
    start = checkpoint.open(run)
    before, actor = CACHE.pop_actor(run, start)
    lanes = CACHE.pop_lanes(start, before, shard)
    with closed_on_failure(lanes), run.commit(kind, cycle, inputs, made_by()) as draft:
        began = perf_counter()
        experience = collect(before, actor, lanes, shard, lambda done, steps: report(NAME, cycle, done, steps))
        write_experience(draft.directory, experience)
        if run.shards == 1:  # metrics of all shards together are logged by `optimize`
            states = before.metadata.counters.states
            _, finished = advance(before.histories, experience, states)
            scores, _ = score_metrics(before.metadata.recent_scores, finished)
            draft.metrics += play_metrics(before.config, experience, states) + scores
        draft.speed[NAME] = experience.states_played / (perf_counter() - began)
    CACHE.put_played(draft.unit, lanes, experience)
    CACHE.put_learner(start, before, actor)
    return UnitReference.of(draft.unit)
