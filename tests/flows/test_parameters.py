from __future__ import annotations

import pytest

from dqn.config import DEFAULT_STATES, make_config
from flows.parameters import Target, learning_rate_note


@pytest.mark.parametrize("target", [Target(states=5), Target(cycles=10**17)])
def test_target_is_restored_from_its_text(target: Target) -> None:
    assert Target.parse(str(target)) == target


@pytest.mark.parametrize("text", ["", "states", "states=", "states=0", "states=-1", "other=5", "states=٣", "cycles=1 "])
def test_text_that_is_no_target_means_the_default(text: str) -> None:
    assert Target.parse(text) == Target(states=DEFAULT_STATES)


def test_note_has_the_learning_rate_that_ends_with_the_training() -> None:
    note = learning_rate_note(make_config("fast", {"learning_rate": "1e-3:1e-5:1000"}), Target(states=800))
    assert note == (
        "the learning rate falls over 1,000 states, and this training has 800; "
        "to let it end with the training: --set learning_rate=0.001:1e-05:800"
    )


@pytest.mark.parametrize(
    ("learning_rate", "target"),
    [
        ("1e-3:1e-5:800", Target(states=800)),
        ("1e-3", Target(states=800)),
        ("1e-3:1e-5:1000", Target(cycles=3)),
        ("1e-3:1e-5:1000", None),
    ],
)
def test_no_note_about_a_learning_rate_that_ends_in_time(learning_rate: str, target: Target | None) -> None:
    assert learning_rate_note(make_config("fast", {"learning_rate": learning_rate}), target) == ""
