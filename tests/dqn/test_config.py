from __future__ import annotations

import json
import pickle
from typing import Any

import pytest
from pydantic import ValidationError

from dqn.config import PRESETS, FieldError, TrainConfig, make_config, nearest
from dqn.schedules import LinearSchedule


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("game", "ALE/Pong-v5", "ALE/Pong-v5"),
        ("seed", "7", 7),
        ("lanes", "16", 16),
        ("discount", "0.5", 0.5),
        ("normalize", "false", False),
        ("scale_input", "true", True),
        ("sweep", "watkins", "watkins"),
        ("epsilon", "0.5:0.05:2_000", LinearSchedule(start=0.5, end=0.05, states=2000)),
        ("max_epochs", "3", LinearSchedule(start=3, end=3)),
        ("max_grad_norm", "0", 0.0),
    ],
)
def test_override_by_text_is_parsed(name: str, text: str, value: object) -> None:
    config = make_config("fast", {name: text})
    assert getattr(config, name) == value and type(getattr(config, name)) is type(value)
    assert config.model_copy(update={name: getattr(TrainConfig(), name)}) == TrainConfig()


def test_overrides_replace_preset_values() -> None:
    config = make_config("tutorial", {"discount": 0.9})
    assert config.discount == 0.9
    assert config.model_copy(update={"discount": 0.97}) == make_config("tutorial")


def test_default_preset_is_fast() -> None:
    assert make_config() == make_config("fast") == TrainConfig()


def test_tutorial_preset_has_the_tutorials_values() -> None:
    expected = {
        "game": "Breakout-v0",
        "replay_states": 200_000,
        "replay_fraction": LinearSchedule(start=0.1, end=1, states=5_000_000),
        "epsilon": LinearSchedule(start=1, end=0.1, states=1_000_000),
        "evaluation_epsilon": 0.01,
        "sweep": "max",
        "discount": 0.97,
        "reward_clip": 1.0,
        "network": "tutorial",
        "normalize": False,
        "scale_input": False,
        "optimizer": "rmsprop",
        "learning_rate": LinearSchedule(start=1e-3, end=1e-5, states=5_000_000),
        "loss": "all-actions",
        "max_grad_norm": 0.0,
        "batch_size": 128,
        "balanced_sampling": True,
        "error_threshold": 0.1,
        "min_epochs": 1.0,
        "max_epochs": LinearSchedule(start=5, end=10, states=5_000_000),
        "loss_limit": LinearSchedule(start=0.1, end=0.015, states=5_000_000),
    }
    config = make_config("tutorial")
    assert {name: getattr(config, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("lane", "did you mean lanes?"),
        ("Learning_Rate", "did you mean learning_rate"),
        ("learning-rate", "did you mean learning_rate"),
        ("qqq", "unknown field 'qqq'"),
    ],
)
def test_unknown_field_is_refused_with_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(ValueError, match="unknown field") as caught:
        make_config("fast", {name: 1})
    assert repr(name) in str(caught.value) and hint in str(caught.value)


def test_unknown_preset_is_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match="unknown preset 'fsat'; choose one of: fast, tutorial"):
        make_config("fsat")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lanes", 0),
        ("lanes", 4097),
        ("lanes", "many"),
        ("lanes", "1.5"),
        ("seed", -1),
        ("seed", 2**63),
        ("episode_frames_limit", 7),
        ("noop_max", -1),
        ("midgame_lanes", -1),
        ("midgame_lanes", 64),
        ("replay_states", 0),
        ("replay_cycles", 0),
        ("replay_fraction", "0:1:100"),
        ("replay_fraction", "0.5:1.5:100"),
        ("keep_cycles", 0),
        ("epsilon", "2:0:100"),
        ("epsilon", "0:1.1:100"),
        ("epsilon", "-1"),
        ("epsilon", "1:0.1"),
        ("epsilon", None),
        ("evaluation_epsilon", 1.01),
        ("sweep", "best"),
        ("discount", 1.01),
        ("discount", "nan"),
        ("td_lambda", -0.1),
        ("reward_clip", -1),
        ("reward_clip", "inf"),
        ("network", "large"),
        ("normalize", "maybe"),
        ("optimizer", "sgd"),
        ("loss", "huber"),
        ("max_grad_norm", -1),
        ("batch_size", 0),
        ("l2", -1),
        ("dropout", 1),
        ("error_threshold", -1),
        ("min_epochs", -1),
        ("device", "tpu"),
        ("precision", "float16"),
        ("threads", -1),
        ("game", 3),
    ],
)
def test_invalid_value_is_refused_in_one_line(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name) as caught:
        make_config("fast", {name: value})
    message = str(caught.value)
    assert "\n" not in message and message.startswith(f"{name} is ")
    assert type(caught.value) in (FieldError, ValueError)
    if isinstance(caught.value, FieldError):  # otherwise the value is refused because of other values
        assert pickle.loads(pickle.dumps(caught.value)).field == name
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("preset", PRESETS)
def test_configuration_round_trips_as_json(preset: str) -> None:
    overrides = {"seed": 2**63 - 1, "epsilon": "0.3:0.007:123457", "discount": 1 / 3, "device": "cpu", "threads": 3}
    for config in (make_config(preset), make_config(preset, overrides)):
        text = json.dumps(config.model_dump(mode="json"))
        assert TrainConfig.model_validate(json.loads(text)) == config


def test_configuration_is_frozen_and_closed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        make_config().seed = 3
    with pytest.raises(ValidationError, match="extra"):
        TrainConfig.model_validate({"sed": 3})


def test_every_field_has_a_description() -> None:
    assert [name for name, field in TrainConfig.model_fields.items() if not field.description] == []


@pytest.mark.parametrize(
    ("replay_states", "lanes", "fraction", "states", "steps"),
    [
        (4096, 64, "1", 0, 64),
        (200_000, 40, "0.1:1:5000000", 0, 500),
        (200_000, 40, "0.1:1:5000000", 2_500_000, 2750),
        (200_000, 40, "0.1:1:5000000", 9_000_000, 5000),
        (10, 64, "1", 0, 1),
        (100, 64, "1", 0, 2),
    ],
)
def test_cycle_steps_by_hand(replay_states: int, lanes: int, fraction: str, states: int, steps: int) -> None:
    config = make_config("fast", {"replay_states": replay_states, "lanes": lanes, "replay_fraction": fraction})
    assert config.cycle_steps(states) == steps


def test_scheduled_has_every_schedule() -> None:
    scheduled = make_config("tutorial").scheduled(500_000)
    assert scheduled == pytest.approx(
        {
            "replay_fraction": 0.19,
            "epsilon": 0.55,
            "learning_rate": 0.000901,
            "max_epochs": 5.5,
            "loss_limit": 0.0915,
        }
    )


@pytest.mark.parametrize(
    ("name", "hint"),
    [("gama", "; did you mean Gamma?"), ("GAMMA", "; did you mean Gamma?"), ("xyz", "")],
)
def test_nearest_ignores_case(name: str, hint: str) -> None:
    assert nearest(name, ["Gamma", "Delta"]) == hint


def test_states_before_a_cycle_follow_from_the_schedule() -> None:
    config = make_config("fast", {"lanes": 4, "replay_states": 40, "replay_fraction": "0.5:1:100"})
    assert [config.states_before(cycle) for cycle in (1, 2, 3, 4)] == [0, 20, 44, 72]
    states = 0
    for cycle in range(1, 12):  # beyond the end of the schedule
        assert config.states_before(cycle) == states
        states += config.cycle_steps(states) * config.lanes
    assert make_config("fast").states_before(10**9) == (10**9 - 1) * 4_096, "constant, so it takes no time"
