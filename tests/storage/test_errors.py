from __future__ import annotations

import pickle

import pytest
from pydantic import TypeAdapter, ValidationError

from storage.errors import CorruptUnitError, as_line, first_problem


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", ""),
        ("as it is: é 東 🙂", "as it is: é 東 🙂"),
        ("two\nlines", "two lines"),
        ("\x1b[2J\t\0", r"\x1b[2J\t\x00"),
        ("\ud800", r"\ud800"),
    ],
)
def test_message_is_one_line_of_text(text: str, line: str) -> None:
    assert as_line(text) == line == as_line(line)
    assert str(CorruptUnitError(text)) == line


def test_long_message_keeps_its_beginning_and_its_end() -> None:
    line = as_line("begin" + 10_000 * "x" + "end")
    assert len(line) <= 2_000 and line.startswith("begin") and line.endswith("end")


def test_error_is_the_same_in_another_process() -> None:
    error = pickle.loads(pickle.dumps(CorruptUnitError("file\nname")))
    assert (type(error), str(error)) == (CorruptUnitError, "file name")


def test_first_problem_of_a_validation_names_the_field() -> None:
    with pytest.raises(ValidationError) as raised:
        TypeAdapter(dict[str, int]).validate_python({"a": 1, "b": "x", "c": "y"})
    assert first_problem(raised.value).startswith("b: ")
    assert first_problem(ValueError("plain")) == "plain"
