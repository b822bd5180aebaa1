"""Play one cycle's states and commit them."""

from __future__ import annotations

from time import perf_counter

from prefect import task
from prefect.cache_policies import NO_CACHE

from dqn.collection import play
from dqn.episodes import follow
from dqn.randomness import generator
from dqn.statistics import play_metrics, score_metrics
from storage.experience import ExperienceWriter, piece_steps
from storage.runs import open_run
from tasks.live import keep_lanes, keep_learner, take_lanes, take_learner
from tasks.progress import report
from tasks.reference import UnitReference, made_by, reference

KIND = "experience"


@task(name="collect-episodes", task_run_name="collect-episodes-{cycle:05d}", cache_policy=NO_CACHE)
def collect_episodes(run_id: str, cycle: int) -> UnitReference:
    """Play cycle `cycle` with the network of the cycle before and commit states and Q-values."""
    run = open_run(run_id)
    start = run.unit("checkpoint", cycle - 1)
    inputs = {"checkpoint": start.digest}
    if unit := run.made(KIND, cycle, inputs):
        run.publish(unit)
        return reference(unit)
    checkpoint, learner = take_learner(run, start)
    lanes = take_lanes(start, checkpoint)
    config, states = checkpoint.config, checkpoint.facts.counters.states
    steps = config.cycle_steps(states)
    with run.commit(KIND, cycle, inputs, made_by()) as draft:
        began = perf_counter()
        writer = ExperienceWriter(draft.directory, steps, config.lanes, len(lanes.action_names))
        draws = generator(config.seed, "policy", cycle)
        size = piece_steps(config.lanes)
        for piece in play(lanes, learner.estimate, steps, size, config.epsilon, states, draws):
            writer.write(piece)
            report("collect-episodes", cycle, writer.states_written, steps * config.lanes)
        experience = writer.finish()
        _, finished = follow(checkpoint.histories, experience, states)
        scores, _ = score_metrics(checkpoint.facts.recent_scores, finished)
        draft.metrics += play_metrics(config, experience, states) + scores
        draft.speed["collect-episodes"] = experience.states_played / (perf_counter() - began)
    unit = run.unit(KIND, cycle)
    keep_lanes(unit, lanes)
    keep_learner(start, checkpoint, learner)
    run.publish(unit)
    return reference(unit)
