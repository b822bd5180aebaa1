"""One training cycle: play, sweep backwards, optimize. Start reading here.

The tasks of the Prefect flow call the same functions as `train_cycle`, and commit what each returns. They add storage,
shards of lanes and replay of earlier cycles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from dqn.checkpoint import Checkpoint, first_checkpoint, restore_learner
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
    ahead = None
    try:
        for _ in range(cycles):
            checkpoint, ahead = train_cycle(checkpoint, learner, lanes, ahead)
            yield checkpoint
    finally:
        for group in lanes:
            group.close()


def train_cycle(
    checkpoint: Checkpoint, learner: Learner, lanes: list[Lanes], ahead: Experience | None
) -> tuple[Checkpoint, Experience | None]:
    """Play, sweep and optimize once.

    Args:
        checkpoint: state of the run before the cycle.
        learner: as `checkpoint` describes it; trained in place.
        lanes: games of all lanes, in groups, as `checkpoint` describes them, or where `ahead` ends.
        ahead: experience of the cycle, if the cycle before has played it.

    Returns:
        The checkpoint after the cycle, and with `overlap` the experience of the next cycle. The checkpoint shares
        tensors with `learner`, so it is valid until the next cycle.
    """
    config, counters = checkpoint.config, checkpoint.metadata.counters

    # 1. Play all lanes with the current network, epsilon-greedy, and record states and estimated Q-values.
    experience = ahead or collect(checkpoint, learner, lanes)
    played = after_play(checkpoint, experience)
    if is_midgame_cycle(config, counters.cycle + 1):
        restore_midgame_lanes(lanes, config, played.histories, shard=0)
    # With `overlap`, the network also plays the next cycle before it is trained. The flow does both at the same time.
    ahead = collect(played, learner, lanes) if config.overlap == "yes" else None
    # 2. Carry the rewards back to the states before them: the network should have estimated these Q-values.
    targets = backward_sweep(experience, SweepRule.of(config))
    # 3. Train the network towards these targets.
    memory = ReplayMemory.of(experience, targets)
    result = train_on(learner, memory, counters.cycle + 1, config.scheduled(counters.states))
    return after_optimization(played, learner, result), ahead


def collect(
    checkpoint: Checkpoint,
    learner: Learner,
    lanes: list[Lanes],
    shard: int = 0,
    on_step: Callable[[int, int], None] = lambda done, steps: None,
) -> Experience:
    """Play the next cycle after `checkpoint` in the lanes of a shard.

    Args:
        checkpoint: state of the run before the cycle, or from `after_play`.
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


def after_play(before: Checkpoint, experience: Experience) -> Checkpoint:
    """The state of a run after a cycle's play and before its optimization.

    Args:
        before: state of the run before the cycle.
        experience: of all lanes; its states are not read.

    Returns:
        The new histories, totals and scores, with the weights of `before`.
    """
    counters = before.metadata.counters
    histories, finished = advance(before.histories, experience, counters.states)
    histories = draw_midgame_starts(histories, before.config, counters.cycle + 1)
    _, recent_scores = score_metrics(before.metadata.recent_scores, finished)
    counters = replace(
        counters,
        cycle=counters.cycle + 1,
        states=counters.states + experience.states_played,
        episodes=counters.episodes + len(finished),
    )
    metadata = replace(before.metadata, counters=counters, recent_scores=recent_scores)
    return replace(before, metadata=metadata, histories=histories)


def after_optimization(played: Checkpoint, learner: Learner, result: OptimizationResult) -> Checkpoint:
    """The checkpoint after a cycle.

    Args:
        played: state of the run after the cycle's play, from `after_play`.
        learner: trained on the cycle.
        result: of the optimization.
    """
    counters = played.metadata.counters
    counters = replace(counters, updates=counters.updates + len(result.losses))
    return Checkpoint(replace(played.metadata, counters=counters), played.histories, *learner.state_dict())
