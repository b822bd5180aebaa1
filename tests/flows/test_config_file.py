"""Configuration files are read back exactly, and a wrong one is answered in one line that says where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dqn.config import PRESETS, TrainConfig, make_config, preset_fields
from dqn.config_file import as_file, read_fields
from dqn.hardware import resolve
from flows.parameters import config_from_file


@pytest.mark.parametrize("preset", PRESETS)
def test_printed_preset_is_read_back_exactly(preset: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(as_file(make_config(preset), "A preset."))
    assert make_config("fast", config_from_file(path)) == make_config(preset)


def test_printed_run_is_read_back_exactly(tmp_path: Path) -> None:
    """Every random draw of a run follows from its configuration, so a training from the file gives the same bytes."""
    config = resolve(make_config("tutorial", {"seed": 2**63 - 1, "epsilon": 0.1, "l2": 1e-7, "game": "ALE/Pong-v5"}))
    path = tmp_path / "run.yaml"
    path.write_text(as_file(config, "A run."))
    assert resolve(make_config("fast", config_from_file(path))) == config


def test_printed_file_describes_every_field() -> None:
    text = as_file(make_config(), "The defaults.")
    comments = " ".join(text.replace("# ", "").split())
    for name, field in TrainConfig.model_fields.items():
        assert f"\n{name}: " in text and " ".join(str(field.description).split()) in comments
    assert max(map(len, text.splitlines())) <= 100


def test_printed_file_means_the_same_to_older_yaml() -> None:
    """PyYAML reads YAML 1.1, in which a bare `no` is a truth value and `1:30` is 90."""
    config = make_config("tutorial", {"compiled": "no", "learning_rate": 1e-5})
    found: dict[str, Any] = yaml.safe_load(as_file(config, "A run."))
    assert found.pop("format") == 1
    assert make_config("fast", found) == config


def test_preset_files_name_only_fields_that_differ() -> None:
    defaults = TrainConfig()
    for preset in PRESETS:
        for name in preset_fields(preset):
            if (preset, name) != ("tutorial", "batch_size"):  # a number of the tutorial
                assert getattr(make_config(preset), name) != getattr(defaults, name), name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lanes: 8\ngama: 0.9\n", ", line 2: unknown field 'gama'; did you mean game?"),
        (
            "lanes: 8\n\n# none\nbatch_size: 0\n",
            ", line 4: batch_size is 0: input should be greater than or equal to 1",
        ),
        ("learning_rate: 1:2\n", ", line 1: learning_rate is '1:2': write a schedule as one number or as start:end:"),
        ("lanes: 8\nlanes: 9\n", ', line 2: found duplicate key "lanes"'),
        ("lanes: [8]\n", ", line 1: lanes must have one value"),
        ("lanes:\n  - 8\nseed: {a: 1}\n", ", line 1: lanes must have one value"),
        ("lanes:\n", ", line 1: lanes must have one value"),
        ("- lanes\n", " must have one field of the configuration in each line, such as: lanes: 64"),
        ("lanes\n", " must have one field of the configuration in each line, such as: lanes: 64"),
        ("lanes: 'a\n", ", line "),
        ("seed: 1\nformat: 2\n", ", line 2: format is 2; this version reads 1: install a newer release"),
        ("format: x\n", ", line 1: format is 'x'; this version reads 1"),
        ("lanes: 2\nshards: 3\n", ": shards is 3; it can be at most lanes, which is 2"),
        ("lanes: !!python/object/apply:os.getcwd []\n", ", line 1: lanes must have one value"),
    ],
)
def test_wrong_file_is_answered_in_one_line(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"run\.yaml") as raised:
        config_from_file(path)
    assert str(raised.value).startswith(f"{path}{message}") and "\n" not in str(raised.value)


def test_file_that_cannot_be_read_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot read the configuration .*none.yaml: No such file"):
        config_from_file(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(bytes(range(256)))
    with pytest.raises(ValueError, match=r"cannot read the configuration .*binary.yaml: it is not text"):
        config_from_file(tmp_path / "binary.yaml")


def test_long_file_is_refused() -> None:
    with pytest.raises(ValueError, match="has 150,000 characters; at most 100,000 are read"):
        read_fields("# \n" * 50_000, "long.yaml")


@given(
    st.text(alphabet=st.characters(codec="utf-8"), max_size=200)
    | st.binary(max_size=200).map(lambda b: b.decode("latin-1"))
)
def test_any_text_is_read_or_refused_in_one_line(text: str) -> None:
    message = ""
    try:
        read_fields(text, "any.yaml")
    except ValueError as error:
        message = str(error)
    assert "\n" not in message and message.startswith("any.yaml" if message else "")


def test_empty_file_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text("# nothing\n")
    assert config_from_file(path) == {}
