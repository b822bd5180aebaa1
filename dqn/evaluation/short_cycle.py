"""A short cycle that a trained network plays, to show its play and what a sweep would make of it."""

from __future__ import annotations

from dqn.config import TrainConfig
from dqn.envs.experience import Experience, Targets
from dqn.envs.histories import first_histories
from dqn.envs.lanes import Lanes
from dqn.envs.policy import CyclePolicy
from dqn.envs.rollout import play_cycle
from dqn.evaluation.evaluation import Protocol, game_settings, policy_draws
from dqn.learning.learner import Learner
from dqn.learning.sweep import SweepRule, backward_sweep
from dqn.schedules import LinearSchedule
from dqn.threads import torch_threads

LANES, STEPS = 8, 128


def play_short_cycle(learner: Learner, config: TrainConfig) -> tuple[Experience, Targets]:
    """Play the first 128 steps of 8 episodes at the `evaluation_epsilon` of a run, and sweep them by its rule.

    The same network and configuration give the same experience.
    """
    protocol = Protocol.of(config)
    settings = game_settings(protocol, config)
    lanes = Lanes(settings, first_histories(LANES), threads=config.threads)
    try:
        actions, channels = len(lanes.action_names), config.state_channels
        experience = Experience.empty(STEPS, LANES, actions, channels=channels)
        epsilon = LinearSchedule(start=protocol.epsilon, end=protocol.epsilon)
        policy = CyclePolicy(epsilon, 0, LANES, [policy_draws(protocol)])
        with torch_threads(1):
            play_cycle([lanes], learner.estimate, experience, policy)
    finally:
        lanes.close()
    return experience, backward_sweep(experience, SweepRule.of(config))
