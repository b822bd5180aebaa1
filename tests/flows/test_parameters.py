from __future__ import annotations

import pytest

from dqn.config import DEFAULT_STATES
from flows.parameters import Target


@pytest.mark.parametrize("target", [Target(states=5), Target(cycles=10**17)])
def test_target_is_restored_from_its_text(target: Target) -> None:
    assert Target.parse(str(target)) == target


@pytest.mark.parametrize("text", ["", "states", "states=", "states=0", "states=-1", "other=5", "states=٣", "cycles=1 "])
def test_text_that_is_no_target_means_the_default(text: str) -> None:
    assert Target.parse(text) == Target(states=DEFAULT_STATES)
