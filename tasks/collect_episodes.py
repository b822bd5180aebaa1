"""Play one cycle's states and commit them."""

from __future__ import annotations

from time import perf_counter

from prefect import task
from prefect.cache_policies import NO_CACHE

from dqn.envs.experience import Experience
from dqn.envs.histories import advance
from dqn.envs.lanes import closed_on_failure
from dqn.envs.policy import CyclePolicy
from dqn.envs.rollout import play_cycle
from dqn.metrics import play_metrics, score_metrics
from storage.formats.experience import write_experience
from storage.runs import open_run
from storage.units.unit import CHECKPOINT, EXPERIENCE
from tasks.process_cache import keep_learner, keep_played, take_lanes, take_learner, unit_at_hand
from tasks.progress import report
from tasks.unit_reference import UnitReference, made_by, name_of_part, reference


@task(name="collect-episodes", task_run_name=name_of_part("collect-episodes"), cache_policy=NO_CACHE)
def collect_episodes(run_id: str, cycle: int, shard: int = 0) -> UnitReference:
    """Play the lanes of a shard for cycle `cycle` with the network of the one before; commit states and Q-values."""
    run = open_run(run_id)
    kind = run.kinds(EXPERIENCE)[shard]
    start = unit_at_hand(run, CHECKPOINT, cycle - 1)
    inputs = {"checkpoint": start.digest}
    if unit := run.made(kind, cycle, inputs):
        return reference(unit)
    checkpoint, learner = take_learner(run, start, to_play=True)
    groups = take_lanes(start, checkpoint, shard)
    config, states = checkpoint.config, checkpoint.metadata.counters.states
    steps, actions = config.cycle_steps(states), len(checkpoint.metadata.action_names)
    lanes = config.shard_lanes(shard)
    experience = Experience.empty(steps, lanes.stop - lanes.start, actions, channels=config.state_channels)
    policy = CyclePolicy.of(config, cycle, states, shard)

    def on_step(done: int, steps: int) -> None:
        report("collect-episodes", cycle, done, steps)

    with closed_on_failure(groups), run.commit(kind, cycle, inputs, made_by()) as draft:
        began = perf_counter()
        play_cycle(groups, learner.estimate, experience, policy, on_step)
        write_experience(draft.directory, experience)
        if run.shards == 1:  # those of all shards together are told by `optimize`
            _, finished = advance(checkpoint.histories, experience, states)
            scores, _ = score_metrics(checkpoint.metadata.recent_scores, finished)
            draft.metrics += play_metrics(config, experience, states) + scores
        draft.speed["collect-episodes"] = experience.states_played / (perf_counter() - began)
    keep_played(draft.unit, groups, experience)
    keep_learner(start, checkpoint, learner)
    return reference(draft.unit)
