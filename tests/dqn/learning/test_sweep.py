from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dqn.config import make_config
from dqn.envs.experience import Experience
from dqn.learning.sweep import OPERATORS, SweepRule, backward_sweep, rescaled, unrescaled

# Value of a state by operator, from its estimates, the action taken, its return and td_lambda.
VALUE_OF_STATE: dict[str, Callable[[list[float], int, float, float], float]] = {
    "max": lambda q, taken, y, mix: max([*q[:taken], y, *q[taken + 1 :]]),
    "ebu": lambda q, taken, y, mix: max([*q[:taken], mix * y + (1 - mix) * q[taken], *q[taken + 1 :]]),
    "peng": lambda q, taken, y, mix: mix * y + (1 - mix) * max(q),
    "watkins": lambda q, taken, y, mix: mix * y + (1 - mix) * max(q) if q[taken] == max(q) else max(q),
}


def slow_rescaled(value: float) -> float:
    return math.copysign(math.sqrt(abs(value) + 1) - 1, value) + 0.01 * value


def slow_unrescaled(value: float) -> float:
    root = (math.sqrt(1 + 4 * 0.01 * (abs(value) + 1 + 0.01)) - 1) / (2 * 0.01)
    return math.copysign(root**2 - 1, value)


def slow_sweep(experience: Experience, rule: SweepRule) -> tuple[np.ndarray, np.ndarray]:
    steps, lanes, _ = experience.q_values.shape
    to, back = (slow_rescaled, slow_unrescaled) if rule.rescale_values else (float, float)
    clip = rule.reward_clip or math.inf
    targets, errors = np.array(experience.q_values), np.zeros((steps, lanes))
    for lane in range(lanes):
        next_value = back(max(experience.bootstrap_q_values[lane].tolist()))
        for step in reversed(range(steps)):
            at = (step, lane)
            estimates, taken = experience.q_values[at].tolist(), int(experience.actions[at])
            if experience.truncated[at]:
                next_value = back(max(estimates))
                continue
            y = max(-clip, min(clip, float(experience.rewards[at])))
            if not experience.life_lost[at] and not experience.terminated[at]:
                y += rule.discount * next_value
            targets[step, lane, taken] = to(y)
            errors[at] = abs(to(y) - estimates[taken])
            next_value = VALUE_OF_STATE[rule.operator]([back(q) for q in estimates], taken, y, rule.td_lambda)
    return targets, errors


def random_experience(seed: int, steps: int, lanes: int, actions: int) -> Experience:
    draws = np.random.default_rng(seed)
    table = (steps, lanes)
    ends = draws.random(table)
    return Experience(
        states=np.zeros((0, lanes, 105, 80, 2), np.uint8),
        q_values=draws.integers(-8, 9, (*table, actions)) / 4,  # few values: ties happen
        bootstrap_q_values=draws.integers(-8, 9, (lanes, actions)) / 4,
        actions=draws.integers(actions, size=table).astype(np.uint8),
        rewards=draws.choice([0.0, 0.0, 0.5, 1.0, 7.0, -3.0], table),
        life_lost=ends < 0.15,
        terminated=(ends > 0.1) & (ends < 0.2),
        truncated=ends > 0.9,
        episode=np.zeros(table, np.int64),
    )


def one_lane(q_values: list, actions: list, rewards: list, bootstrap: list, **flags: list) -> Experience:
    experience = Experience.empty(len(actions), 1, len(bootstrap), with_states=False)
    values = {"q_values": q_values, "actions": actions, "rewards": rewards, **flags}
    for name, value in values.items():
        getattr(experience, name)[:, 0] = value
    experience.bootstrap_q_values[0] = bootstrap
    return experience


EXPERIENCES = st.builds(
    random_experience,
    seed=st.integers(0, 2**32),
    steps=st.integers(1, 12),
    lanes=st.integers(1, 4),
    actions=st.integers(1, 5),
)
RULES = st.builds(
    SweepRule,
    operator=st.sampled_from(OPERATORS),
    discount=st.floats(0, 1),
    td_lambda=st.floats(0, 1),
    reward_clip=st.sampled_from([0.25, 1.0, 5.0, 0.0]),
    rescale_values=st.booleans(),
)


@settings(deadline=None, max_examples=300)
@given(experience=EXPERIENCES, rule=RULES)
def test_sweep_equals_slow_reference(experience: Experience, rule: SweepRule) -> None:
    found = backward_sweep(experience, rule)
    targets, errors = slow_sweep(experience, rule)
    np.testing.assert_allclose(found.q_values, targets, rtol=0, atol=1e-11)
    np.testing.assert_allclose(found.estimation_errors, errors, rtol=0, atol=1e-11)


@settings(deadline=None, max_examples=50)
@given(experience=EXPERIENCES, rule=RULES)
def test_sweep_keeps_lanes_independent(experience: Experience, rule: SweepRule) -> None:
    together = backward_sweep(experience, rule)
    for lane in range(experience.actions.shape[1]):
        columns = {
            field.name: np.ascontiguousarray(getattr(experience, field.name)[:, lane : lane + 1])
            for field in fields(experience)
            if field.name != "bootstrap_q_values"
        }
        alone = Experience(**columns, bootstrap_q_values=experience.bootstrap_q_values[lane : lane + 1])
        assert np.array_equal(backward_sweep(alone, rule).q_values, together.q_values[:, lane : lane + 1])


@settings(deadline=None, max_examples=50)
@given(experience=EXPERIENCES, rule=RULES)
def test_sweep_does_not_change_the_experience(experience: Experience, rule: SweepRule) -> None:
    before = {field.name: getattr(experience, field.name).copy() for field in fields(experience)}
    targets = backward_sweep(experience, rule)
    assert not np.shares_memory(targets.q_values, experience.q_values)
    for name, value in before.items():
        assert np.array_equal(getattr(experience, name), value), name


@settings(deadline=None, max_examples=50)
@given(experience=EXPERIENCES, rule=RULES)
def test_sweep_changes_only_the_action_taken(experience: Experience, rule: SweepRule) -> None:
    targets = backward_sweep(experience, rule).q_values
    other = np.arange(targets.shape[2]) != experience.actions[..., None]
    assert np.array_equal(targets[other], experience.q_values[other])


@settings(deadline=None, max_examples=50)
@given(experience=EXPERIENCES, rule=RULES)
def test_sweep_in_float32_is_close_to_float64(experience: Experience, rule: SweepRule) -> None:
    single = replace(
        experience,
        q_values=experience.q_values.astype(np.float32),
        bootstrap_q_values=experience.bootstrap_q_values.astype(np.float32),
        rewards=experience.rewards.astype(np.float32),
    )
    found, exact = backward_sweep(single, rule), backward_sweep(experience, rule)
    assert found.q_values.dtype == found.estimation_errors.dtype == np.float32
    assert exact.q_values.dtype == exact.estimation_errors.dtype == np.float64
    np.testing.assert_allclose(found.q_values, exact.q_values, rtol=1e-5, atol=1e-4)


# Two steps, discount 0.5, td_lambda 0.5. The second step has a reward of 1 and leads to a state of value 8, so its
# return is 5. The return of the first step is the discounted value of the second state.
@pytest.mark.parametrize(
    ("operator", "second_estimates", "first_return"),
    [
        ("max", [2, 3], 0.5 * 5),
        ("max", [2, 6], 0.5 * 6),
        ("ebu", [2, 3], 0.5 * (0.5 * 5 + 0.5 * 2)),
        ("ebu", [2, 6], 0.5 * 6),
        ("peng", [2, 3], 0.5 * (0.5 * 5 + 0.5 * 3)),
        ("peng", [3, 2], 0.5 * (0.5 * 5 + 0.5 * 3)),
        ("watkins", [2, 3], 0.5 * 3),
        ("watkins", [3, 2], 0.5 * (0.5 * 5 + 0.5 * 3)),
        ("watkins", [3, 3], 0.5 * (0.5 * 5 + 0.5 * 3)),
    ],
)
def test_sweep_operator_values_the_next_state(operator: str, second_estimates: list, first_return: float) -> None:
    experience = one_lane([[1, 0], second_estimates], [0, 0], [0, 1], [8, 4])
    targets = backward_sweep(experience, SweepRule(operator, discount=0.5, td_lambda=0.5))
    assert targets.q_values[:, 0, 0].tolist() == [first_return, 5]
    assert targets.estimation_errors[:, 0].tolist() == [abs(first_return - 1), 5 - second_estimates[0]]


@pytest.mark.parametrize("end", ["life_lost", "terminated"])
def test_sweep_stops_at_ends(end: str) -> None:
    experience = one_lane([[0, 0], [0, 0]], [1, 1], [1, 1], [9, 9], **{end: [True, False]})
    targets = backward_sweep(experience, SweepRule(discount=0.5))
    assert targets.q_values[:, 0, 1].tolist() == [1, 1 + 0.5 * 9]


def test_sweep_bootstraps_from_truncated_row() -> None:
    """The truncated row keeps its estimates."""
    experience = one_lane([[0, 0], [3, 4], [0, 0]], [0, 0, 0], [1, 0, 0], [9, 9], truncated=[False, True, False])
    targets = backward_sweep(experience, SweepRule(discount=0.5))
    assert targets.q_values[:, 0].tolist() == [[1 + 0.5 * 4, 0], [3, 4], [4.5, 0]]
    assert targets.estimation_errors[:, 0].tolist() == [3, 0, 4.5]


@pytest.mark.parametrize(("clip", "expected"), [(1.0, [1, -1, 0.5]), (3.0, [3, -2, 0.5]), (0.0, [5, -2, 0.5])])
def test_sweep_clips_rewards(clip: float, expected: list) -> None:
    experience = one_lane([[0], [0], [0]], [0, 0, 0], [5, -2, 0.5], [0])
    targets = backward_sweep(experience, SweepRule(discount=0.0, reward_clip=clip))
    assert targets.q_values[:, 0, 0].tolist() == expected


@settings(deadline=None, max_examples=30)
@given(experience=EXPERIENCES, discount=st.floats(0, 1), td_lambda=st.floats(0, 1))
def test_max_ignores_td_lambda_and_equals_ebu_of_1(experience: Experience, discount: float, td_lambda: float) -> None:
    plain = backward_sweep(experience, SweepRule("max", discount, 1.0))
    for rule in (SweepRule("max", discount, td_lambda), SweepRule("ebu", discount, 1.0)):
        assert np.array_equal(backward_sweep(experience, rule).q_values, plain.q_values)


def test_sweep_rule_of_configuration() -> None:
    config = make_config(
        "fast", {"sweep": "ebu", "discount": 0.9, "td_lambda": 0.3, "reward_clip": 2, "rescale_values": True}
    )
    assert SweepRule.of(config) == SweepRule("ebu", 0.9, 0.3, 2.0, True)


@pytest.mark.parametrize(("value", "small"), [(0, 0), (3, 1.03), (-3, -1.03), (99, 9.99), (9_999, 198.99)])
def test_rescaling_by_hand(value: float, small: float) -> None:
    np.testing.assert_allclose(rescaled(np.array([value])), [small], rtol=1e-12)


@given(values=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20))
def test_rescaling_is_inverted_and_keeps_the_order(values: list[float]) -> None:
    table = np.array(values)
    np.testing.assert_allclose(unrescaled(rescaled(table)), table, rtol=1e-9, atol=1e-12)
    assert values[int(rescaled(table).argmax())] == pytest.approx(max(values), rel=1e-9, abs=1e-12)


def test_rescaled_sweep_by_hand() -> None:
    # The bootstrap is 99 before rescaling. The last step's return is 0.5 · 99, the first step's 200 + 0.5 · 0.5 · 99.
    experience = one_lane([[0.0], [0.0]], [0, 0], [200, 0], [9.99])
    targets = backward_sweep(experience, SweepRule("max", discount=0.5, reward_clip=0, rescale_values=True))
    expected = [slow_rescaled(200 + 0.25 * 99), slow_rescaled(0.5 * 99)]
    np.testing.assert_allclose(targets.q_values[:, 0, 0], expected, rtol=1e-6)


def test_unknown_operator_is_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match="unknown sweep 'best'; choose one of: max, ebu, peng, watkins"):
        SweepRule("best")
