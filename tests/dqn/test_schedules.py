from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from dqn.schedules import LinearSchedule

# Few digits, as in configurations.
VALUES = st.integers(0, 10**6).map(lambda value: value / 10**4)
SCHEDULES = st.builds(LinearSchedule, start=VALUES, end=VALUES, states=st.integers(1, 10**9))


@pytest.mark.parametrize(
    ("text", "states", "value"),
    [
        ("1:0.1:1000000", 0, 1),
        ("1:0.1:1000000", 500_000, 0.55),
        ("1:0.1:1000000", 999_999, 0.1000009),
        ("1:0.1:1000000", 1_000_000, 0.1),
        ("1:0.1:1000000", 127_600_000, 0.1),
        ("1:0.1:10", 10, 0.1),
        ("1:0.1:10", 11, 0.1),
        ("5:10:5_000_000", 2_500_000, 7.5),
        ("0.25", 0, 0.25),
        ("0.25", 10**12, 0.25),
        ("1e-3:1e-5:10", 5, 0.000505),
    ],
)
def test_schedule_value_by_hand(text: str, states: int, value: float) -> None:
    assert LinearSchedule.model_validate(text).at(states) == pytest.approx(value, rel=1e-12)


@given(schedule=SCHEDULES, states=st.integers(0, 2 * 10**9))
def test_schedule_stays_between_start_and_end(schedule: LinearSchedule, states: int) -> None:
    low, high = sorted((schedule.start, schedule.end))
    assert low - 1e-9 <= schedule.at(states) <= high + 1e-9
    assert schedule.at(0) == schedule.start
    assert schedule.at(schedule.states + states) == schedule.end


@given(schedule=SCHEDULES, states=st.integers(0, 10**9), more=st.integers(0, 10**9))
def test_schedule_is_monotonic(schedule: LinearSchedule, states: int, more: int) -> None:
    step = schedule.at(states + more) - schedule.at(states)
    assert step * (schedule.end - schedule.start) >= -1e-9


@given(schedule=SCHEDULES, states=st.integers(0, 2 * 10**9))
def test_schedule_round_trips_as_text(schedule: LinearSchedule, states: int) -> None:
    read = LinearSchedule.model_validate(schedule.model_dump(mode="json"))
    assert read.at(states) == schedule.at(states)
    assert read == LinearSchedule.model_validate(str(read))


@pytest.mark.parametrize(
    ("given", "text"), [(1, "1"), (0.5, "0.5"), ("1:0.10:1_000", "1:0.1:1000"), ("2:2:9", "2:2:9")]
)
def test_schedule_text_is_short(given: float | str, text: str) -> None:
    assert str(LinearSchedule.model_validate(given)) == text


@pytest.mark.parametrize(
    "text", ["1:0.1", "1:2:3:4", "a", "", "-1", "nan", "inf", "1:-0.1:5", "1:0:0", "1:0:-3", "1:0:2.5"]
)
def test_schedule_refuses_invalid_text(text: str) -> None:
    with pytest.raises(ValidationError):
        LinearSchedule.model_validate(text)


@pytest.mark.parametrize("value", [True, None, [1, 2, 3], {"start": 1, "end": 0, "steps": 5}, {"start": 1}])
def test_schedule_refuses_other_types(value: object) -> None:
    with pytest.raises(ValidationError):
        LinearSchedule.model_validate(value)


def test_schedule_refuses_negative_states() -> None:
    with pytest.raises(ValueError, match="states is -1; it must be at least 0"):
        LinearSchedule(start=1, end=0).at(-1)


def test_schedule_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        LinearSchedule(start=1, end=0).start = 2
