"""One training cycle: play, sweep backwards, optimize. Start reading here.

The tasks of the Prefect flow call the same functions as `train_cycle`, and commit what each returns. They add storage,
shards of lanes and replay of earlier cycles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from dqn.checkpoint import Checkpoint, Counters, first_checkpoint, restore_learner
from dqn.config import TrainConfig
from dqn.envs.experience import Experience
from dqn.envs.games import action_names
from dqn.envs.histories import advance, draw_midgame_starts, is_midgame_cycle
from dqn.envs.lanes import Lanes, open_lanes, restore_midgame_lanes
from dqn.envs.policy import CyclePolicy
from dqn.envs.rollout import play_cycle
from dqn.hardware import prepare
from dqn.learning.learner import Learner
from dqn.learning.optimization import OptimizationResult, train_on
from dqn.learning.replay import ReplayMemory, cut_at_starts, reestimated
from dqn.learning.sweep import SweepRule, backward_sweep
from dqn.metrics import score_metrics


def train(config: TrainConfig, cycles: int) -> Iterator[Checkpoint]:
    """Train a new agent in this process, without storage; yields the checkpoint after each cycle.

    Args:
        config: resolved for this machine, with one shard and `replay_cycles` 1.
        cycles: number of cycles.
    """
    names = action_names(config.game, config.full_action_set)
    checkpoint = first_checkpoint(config, names)
    learner = restore_learner(checkpoint, prepare(config))
    lanes = open_lanes(config, checkpoint.histories)
    try:
        for _ in range(cycles):
            checkpoint = train_cycle(checkpoint, learner, lanes)
            yield checkpoint
    finally:
        for group in lanes:
            group.close()


def train_cycle(checkpoint: Checkpoint, learner: Learner, lanes: list[Lanes]) -> Checkpoint:
    """Play, sweep and optimize once.

    Args:
        checkpoint: state of the run before the cycle.
        learner: as `checkpoint` describes it; trained in place.
        lanes: games of all lanes, in groups, as `checkpoint` describes them; left as the result describes them.

    Returns:
        The checkpoint after the cycle. It shares tensors with `learner`, so it is valid until the next cycle.
    """
    config, counters = checkpoint.config, checkpoint.metadata.counters
    cycle = counters.cycle + 1

    # 1. Play all lanes with the current network, epsilon-greedy, and record states and estimated Q-values.
    experience = collect(checkpoint, learner, lanes)
    # 2. Carry the rewards back to the states before them: the network should have estimated these Q-values.
    targets = backward_sweep(experience, SweepRule.of(config))
    # 3. Train the network towards these targets.
    memory = ReplayMemory.of(experience, targets)
    result = train_on(learner, memory, cycle, config.scheduled(counters.states))

    after = next_checkpoint(checkpoint, learner, experience, result)
    if is_midgame_cycle(config, cycle):
        restore_midgame_lanes(lanes, config, after.histories, shard=0)
    return after


def collect(
    checkpoint: Checkpoint,
    learner: Learner,
    lanes: list[Lanes],
    shard: int = 0,
    on_step: Callable[[int, int], None] = lambda done, steps: None,
) -> Experience:
    """Play the cycle after `checkpoint` in the lanes of a shard.

    Args:
        checkpoint: state of the run before the cycle.
        learner: its network estimates Q-values.
        lanes: games of the shard, in groups, as `checkpoint` describes them; left after the last step.
        shard: number of the shard; 0 where all lanes are one shard.
        on_step: called with the number of steps done and the number of all steps.

    Returns:
        T steps of the shard's L lanes.
    """
    config, states = checkpoint.config, checkpoint.metadata.counters.states
    where = config.shard_lanes(shard)
    experience = Experience.empty(
        config.cycle_steps(states),
        where.stop - where.start,
        len(checkpoint.metadata.action_names),
        channels=config.state_channels,
    )
    policy = CyclePolicy.of(config, checkpoint.metadata.counters.cycle + 1, states, shard)
    play_cycle(lanes, learner.estimate, experience, policy, on_step)
    return experience


def replay_memory(experience: Experience, new_steps: int, learner: Learner) -> ReplayMemory:
    """The replay memory of several cycles, swept as one.

    Args:
        experience: of consecutive cycles, T steps of all lanes.
        new_steps: steps of the newest cycle, which `learner` played; the Q-values of all steps before are estimated
            again.
        learner: estimates the Q-values.
    """
    experience = cut_at_starts(experience)
    experience = reestimated(experience, experience.steps - new_steps, learner.estimate)
    return ReplayMemory.of(experience, backward_sweep(experience, SweepRule.of(learner.config)))


def next_checkpoint(
    before: Checkpoint, learner: Learner, experience: Experience, result: OptimizationResult
) -> Checkpoint:
    """The checkpoint one cycle after `before`.

    Args:
        before: state of the run before the cycle.
        learner: trained on the cycle.
        experience: of all lanes; its states are not read.
        result: of the optimization.
    """
    counters = before.metadata.counters
    histories, finished = advance(before.histories, experience, counters.states)
    histories = draw_midgame_starts(histories, before.config, counters.cycle + 1)
    _, recent_scores = score_metrics(before.metadata.recent_scores, finished)
    counters = Counters(
        cycle=counters.cycle + 1,
        states=counters.states + experience.states_played,
        episodes=counters.episodes + len(finished),
        updates=counters.updates + len(result.losses),
    )
    metadata = replace(before.metadata, counters=counters, recent_scores=recent_scores)
    return Checkpoint(metadata, histories, *learner.state_dict())
