"""The backward sweep: rewards carried back to the states before them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numba import njit

from dqn.config import TrainConfig
from dqn.envs.experience import Experience, Targets

OPERATORS = ("max", "ebu", "peng", "watkins")
RESCALING = 0.01  # the slope that rescaled values keep far from zero


@dataclass(frozen=True)
class SweepRule:
    """How the value of the next state enters the return of the one before it.

    With y the return of the action taken, Q the network's estimates and y = r + discount · V(next):

    max      V = max over actions of Q with the taken action's value replaced by y (the tutorial)
    ebu      as max, replaced by td_lambda · y + (1 - td_lambda) · Q
             (Lee, Choi and Chung 2019, Episodic Backward Update, with its diffusion factor)
    peng     V = td_lambda · y + (1 - td_lambda) · max Q (Peng and Williams 1996)
    watkins  as peng where the taken action was greedy, else max Q (Watkins 1989)

    Where values are rescaled, the network estimates `rescaled` values: all of this happens to the values
    themselves, and the returns are rescaled. The greedy actions are the same, for rescaling keeps order.
    """

    operator: str = "max"
    discount: float = 0.97
    td_lambda: float = 1.0
    reward_clip: float = 1.0  # 0 is none
    rescale_values: bool = False

    def __post_init__(self) -> None:
        if self.operator not in OPERATORS:
            raise ValueError(f"unknown sweep {self.operator!r}; choose one of: {', '.join(OPERATORS)}")

    @classmethod
    def of(cls, config: TrainConfig) -> SweepRule:
        """The rule a configuration asks for."""
        return cls(config.sweep, config.discount, config.td_lambda, config.reward_clip, config.rescale_values)


def backward_sweep(experience: Experience, rule: SweepRule) -> Targets:
    """Carry observed rewards back to the states before them.

    Walks each lane from its last step to its first and replaces the Q-value of the action taken by
    r + discount · V(next state), or by r alone where a life or the episode ended. The state after the
    last step counts with the bootstrap's highest Q-value; truncated rows keep their estimates.

    Args:
        experience: q_values (T, L, A) float32 or float64, rewards (T, L) not clipped.
        rule: how the value of the next state enters.

    Returns:
        New targets of the same shapes and precision; the experience is not touched.
    """
    if not rule.rescale_values:
        return _plain_sweep(experience, rule)
    values = replace(
        experience,
        q_values=unrescaled(experience.q_values),
        bootstrap_q_values=unrescaled(experience.bootstrap_q_values),
    )
    taken = experience.actions[..., None].astype(np.int64)
    returns = rescaled(np.take_along_axis(_plain_sweep(values, rule).q_values, taken, 2))
    estimates = np.take_along_axis(experience.q_values, taken, 2)
    returns = np.where(experience.truncated[..., None], estimates, returns).astype(estimates.dtype)
    targets = experience.q_values.copy()
    np.put_along_axis(targets, taken, returns, 2)
    return Targets(targets, np.abs(returns - estimates)[..., 0])


def rescaled(values: np.ndarray) -> np.ndarray:
    """sign(v) · (√(|v| + 1) - 1) + 0.01 · v, in double precision: large values closer together, order kept.

    Source: Pohlen and others 2018, Observe and Look Further.
    """
    values = values.astype(np.float64)
    result: np.ndarray = np.sign(values) * (np.sqrt(np.abs(values) + 1) - 1) + RESCALING * values
    return result


def unrescaled(values: np.ndarray) -> np.ndarray:
    """The inverse of `rescaled`, in double precision.

    With v ≥ 0, u = √(v + 1) solves 0.01 · u² + u = 1.01 + rescaled(v).
    """
    values = values.astype(np.float64)
    roots = (np.sqrt(1 + 4 * RESCALING * (1 + RESCALING + np.abs(values))) - 1) / (2 * RESCALING)
    result: np.ndarray = np.sign(values) * (roots**2 - 1)
    return result


def _plain_sweep(experience: Experience, rule: SweepRule) -> Targets:
    """The sweep of values as they are."""
    q_values = experience.q_values
    steps, lanes, actions = q_values.shape
    assert experience.actions.shape == experience.rewards.shape == (steps, lanes)
    assert experience.bootstrap_q_values.shape == (lanes, actions)
    targets = np.empty_like(q_values)
    errors = np.empty((steps, lanes), q_values.dtype)
    _sweep(
        q_values,
        experience.bootstrap_q_values,
        experience.actions,
        experience.rewards,
        experience.life_lost,
        experience.terminated,
        experience.truncated,
        rule.reward_clip or np.inf,
        rule.discount,
        1.0 if rule.operator == "max" else rule.td_lambda,
        rule.operator in ("max", "ebu"),
        rule.operator == "watkins",
        targets,
        errors,
    )
    return Targets(targets, errors)


@njit(cache=True, nogil=True)
def _sweep(
    q_values: np.ndarray,
    bootstrap: np.ndarray,
    actions: np.ndarray,
    rewards: np.ndarray,
    life_lost: np.ndarray,
    terminated: np.ndarray,
    truncated: np.ndarray,
    reward_clip: float,
    discount: float,
    td_lambda: float,
    replaces: bool,
    cuts: bool,
    targets: np.ndarray,
    errors: np.ndarray,
) -> None:
    steps, lanes, action_count = q_values.shape
    next_values = np.empty(lanes)
    for lane in range(lanes):
        next_values[lane] = bootstrap[lane].max()
    for step in range(steps - 1, -1, -1):
        for lane in range(lanes):
            taken = actions[step, lane]
            best = -np.inf
            best_other = -np.inf
            for action in range(action_count):
                value = q_values[step, lane, action]
                targets[step, lane, action] = value
                best = max(best, value)
                if action != taken:
                    best_other = max(best_other, value)
            if truncated[step, lane]:
                errors[step, lane] = 0.0
                next_values[lane] = best
                continue
            estimate = q_values[step, lane, taken]
            swept = min(max(rewards[step, lane], -reward_clip), reward_clip)
            if not (life_lost[step, lane] or terminated[step, lane]):
                swept += discount * next_values[lane]
            targets[step, lane, taken] = swept
            errors[step, lane] = abs(swept - estimate)
            if replaces:
                mixed = td_lambda * swept + (1.0 - td_lambda) * estimate
                next_values[lane] = max(mixed, best_other)
            elif cuts and estimate < best:
                next_values[lane] = best
            else:
                next_values[lane] = td_lambda * swept + (1.0 - td_lambda) * best
