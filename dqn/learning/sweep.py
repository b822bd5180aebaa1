"""The backward sweep: propagates rewards backwards to the states that led to them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numba import njit

from dqn.config import TrainConfig
from dqn.envs.experience import Experience, Targets

OPERATORS = ("max", "ebu", "peng", "watkins")
RESCALING = 0.01  # slope of rescaled values far from zero


@dataclass(frozen=True)
class SweepRule:
    """How the value of the next state enters the return of the state before it.

    y is the return of the action taken, y = r + discount · V(next state), and Q are the network's estimates.
    V of a state is, by operator:

    max      the maximum over actions of Q, with the taken action's Q replaced by y (the tutorial)
    ebu      as max, with the taken action's Q replaced by td_lambda · y + (1 - td_lambda) · Q
             (Lee, Choi and Chung 2019, Episodic Backward Update, with its diffusion factor beta)
    peng     td_lambda · y + (1 - td_lambda) · max Q (Peng and Williams 1996)
    watkins  as peng if the action taken was greedy, otherwise max Q (Watkins 1989)

    With `rescale_values` the network estimates `rescaled` values. The sweep is then computed on the values themselves,
    and its returns are rescaled. Rescaling keeps the order of values, so the greedy actions are the same.
    """

    operator: str = "max"
    discount: float = 0.97
    td_lambda: float = 1.0
    reward_clip: float = 1.0  # 0 disables clipping
    rescale_values: bool = False

    def __post_init__(self) -> None:
        if self.operator not in OPERATORS:
            raise ValueError(f"unknown sweep {self.operator!r}; choose one of: {', '.join(OPERATORS)}")

    @classmethod
    def of(cls, config: TrainConfig) -> SweepRule:
        """The rule of a configuration."""
        return cls(config.sweep, config.discount, config.td_lambda, config.reward_clip, config.rescale_values)


def backward_sweep(experience: Experience, rule: SweepRule) -> Targets:
    """Propagate observed rewards backwards to the states that led to them.

    Each lane is walked from its last step to its first. The Q-value of the action taken becomes
    r + discount · V(next state), or r alone where a life was lost or the episode terminated. V of the state after the
    last step is its highest Q-value. Truncated rows keep their estimates, and the step before bootstraps from them.

    Args:
        experience: T steps of L lanes with A actions. q_values (T, L, A) is float32 or float64; rewards (T, L) are not
            clipped.
        rule: how the value of the next state enters.

    Returns:
        New targets: q_values (T, L, A) and estimation_errors (T, L), in the precision of the experience's q_values.
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
    """sign(v) · (√(|v| + 1) - 1) + 0.01 · v in float64: compresses large values and keeps their order.

    Source: Pohlen and others 2018, Observe and Look Further: Achieving Consistent Performance on Atari.
    """
    values = values.astype(np.float64)
    result: np.ndarray = np.sign(values) * (np.sqrt(np.abs(values) + 1) - 1) + RESCALING * values
    return result


def unrescaled(values: np.ndarray) -> np.ndarray:
    """The inverse of `rescaled`, in float64.

    With v ≥ 0, u = √(v + 1) solves 0.01 · u² + u = 1.01 + rescaled(v).
    """
    values = values.astype(np.float64)
    roots = (np.sqrt(1 + 4 * RESCALING * (1 + RESCALING + np.abs(values))) - 1) / (2 * RESCALING)
    result: np.ndarray = np.sign(values) * (roots**2 - 1)
    return result


def _plain_sweep(experience: Experience, rule: SweepRule) -> Targets:
    """The sweep of values that are not rescaled."""
    q_values = experience.q_values
    steps, lanes, actions = q_values.shape
    assert experience.actions.shape == experience.rewards.shape == (steps, lanes)
    assert experience.bootstrap_q_values.shape == (lanes, actions)
    targets = np.empty_like(q_values)
    errors = np.empty((steps, lanes), q_values.dtype)
    tables = _Tables(
        q_values,
        experience.bootstrap_q_values,
        experience.actions,
        experience.rewards,
        experience.life_lost | experience.terminated,
        experience.truncated,
    )
    numbers = _Numbers(
        reward_clip=rule.reward_clip or np.inf,
        discount=rule.discount,
        td_lambda=1.0 if rule.operator == "max" else rule.td_lambda,
        replaces=rule.operator in ("max", "ebu"),
        cuts=rule.operator == "watkins",
    )
    _sweep(tables, numbers, targets, errors)
    return Targets(targets, errors)


class _Tables(NamedTuple):
    """Arrays of an experience, for compiled code."""

    q_values: np.ndarray  # (T, L, A)
    bootstrap_q_values: np.ndarray  # (L, A)
    actions: np.ndarray  # (T, L)
    rewards: np.ndarray  # (T, L)
    ended: np.ndarray  # (T, L) bool: the next state has no value
    truncated: np.ndarray  # (T, L) bool


class _Numbers(NamedTuple):
    """A sweep rule, for compiled code."""

    reward_clip: float
    discount: float
    td_lambda: float
    replaces: bool  # the return replaces the taken action's Q-value in the maximum
    cuts: bool  # actions that were not greedy cut the return off


@njit(cache=True, nogil=True)
def _sweep(tables: _Tables, rule: _Numbers, targets: np.ndarray, errors: np.ndarray) -> None:
    steps, lanes, actions = tables.q_values.shape
    next_values = np.empty(lanes)
    for lane in range(lanes):
        next_values[lane] = tables.bootstrap_q_values[lane].max()
    for step in range(steps - 1, -1, -1):
        for lane in range(lanes):
            taken = tables.actions[step, lane]
            best = -np.inf
            best_other = -np.inf
            for action in range(actions):
                value = tables.q_values[step, lane, action]
                targets[step, lane, action] = value
                best = max(best, value)
                if action != taken:
                    best_other = max(best_other, value)
            if tables.truncated[step, lane]:
                errors[step, lane] = 0.0
                next_values[lane] = best
                continue
            estimate = tables.q_values[step, lane, taken]
            swept = min(max(tables.rewards[step, lane], -rule.reward_clip), rule.reward_clip)
            if not tables.ended[step, lane]:
                swept += rule.discount * next_values[lane]
            targets[step, lane, taken] = swept
            errors[step, lane] = abs(swept - estimate)
            if rule.replaces:
                mixed = rule.td_lambda * swept + (1.0 - rule.td_lambda) * estimate
                next_values[lane] = max(mixed, best_other)
            elif rule.cuts and estimate < best:
                next_values[lane] = best
            else:
                next_values[lane] = rule.td_lambda * swept + (1.0 - rule.td_lambda) * best
