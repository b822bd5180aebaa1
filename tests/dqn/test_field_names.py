from __future__ import annotations

import json

import pytest

from dqn.config import TrainConfig, make_config
from dqn.field_names import ADVICE, OTHER_NAMES, RENAMED

CALLED = {**OTHER_NAMES, **RENAMED}


def test_other_names_are_unique_and_lead_to_fields() -> None:
    assert set(CALLED.values()) <= set(TrainConfig.model_fields)
    assert not (set(CALLED) | set(ADVICE)) & set(TrainConfig.model_fields)
    assert not set(CALLED) & set(ADVICE)


@pytest.mark.parametrize(("name", "field"), CALLED.items())
def test_other_name_is_answered_with_ours(name: str, field: str) -> None:
    for written in (name, name.upper(), name.replace("_", "-")):
        with pytest.raises(ValueError, match="unknown field") as caught:
            make_config("fast", {written: 1})
        assert str(caught.value) == f"unknown field {written!r}; it is called {field} here"


@pytest.mark.parametrize(("name", "advice"), ADVICE.items())
def test_name_without_equivalent_is_answered_with_advice(name: str, advice: str) -> None:
    with pytest.raises(ValueError, match="unknown field") as caught:
        make_config("fast", {name: 1})
    assert str(caught.value) == f"unknown field {name!r}; {advice}"


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_renamed_field_is_read_from_stored_runs(old: str, new: str) -> None:
    config = TrainConfig.model_validate({new: 0.25})
    stored = json.loads(config.model_dump_json())
    stored[old] = stored.pop(new)
    assert TrainConfig.model_validate(stored) == config


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_renamed_field_given_twice_is_refused(old: str, new: str) -> None:
    with pytest.raises(ValueError, match=f"{old} is the earlier name of {new}; give only {new}"):
        TrainConfig.model_validate({old: 0.25, new: 0.25})
