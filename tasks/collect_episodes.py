"""Play one cycle's states and commit them."""

from __future__ import annotations

from time import perf_counter

from prefect import task
from prefect.cache_policies import NO_CACHE

from dqn.collection import play
from dqn.episodes import follow
from dqn.experience import Experience
from dqn.randomness import generator
from dqn.statistics import play_metrics, score_metrics
from storage.experience import write_experience
from storage.runs import open_run
from tasks.live import keep_learner, keep_played, take_lanes, take_learner, unit_at_hand
from tasks.progress import report
from tasks.reference import UnitReference, made_by, reference

KIND = "experience"


@task(name="collect-episodes", task_run_name="collect-episodes-{cycle:05d}", cache_policy=NO_CACHE)
def collect_episodes(run_id: str, cycle: int) -> UnitReference:
    """Play cycle `cycle` with the network of the cycle before and commit states and Q-values."""
    run = open_run(run_id)
    start = unit_at_hand(run, "checkpoint", cycle - 1)
    inputs = {"checkpoint": start.digest}
    if unit := run.made(KIND, cycle, inputs):
        return reference(unit)
    checkpoint, learner = take_learner(run, start)
    groups = take_lanes(start, checkpoint)
    config, states = checkpoint.config, checkpoint.facts.counters.states
    steps, actions = config.cycle_steps(states), len(checkpoint.facts.action_names)
    experience = Experience.empty(steps, config.lanes, actions, channels=config.state_channels)
    draws = [generator(config.seed, "policy", cycle, group) for group in range(len(groups))]

    def on_step(done: int, steps: int) -> None:
        report("collect-episodes", cycle, done, steps)

    with run.commit(KIND, cycle, inputs, made_by()) as draft:
        began = perf_counter()
        play(groups, learner.estimate, experience, config.epsilon, states, draws, on_step)
        write_experience(draft.directory, experience)
        _, finished = follow(checkpoint.histories, experience, states)
        scores, _ = score_metrics(checkpoint.facts.recent_scores, finished)
        draft.metrics += play_metrics(config, experience, states) + scores
        draft.speed["collect-episodes"] = experience.states_played / (perf_counter() - began)
    keep_played(draft.unit, groups, experience)
    keep_learner(start, checkpoint, learner)
    return reference(draft.unit)
