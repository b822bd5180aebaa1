"""Values that change linearly with the number of states played."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_serializer, model_validator


class LinearSchedule(BaseModel):
    """A value that changes linearly from `start` to `end` over the first `states` states, and then stays at `end`.

    As text it is `start:end:states`, or one number for a constant: `1:0.1:1000000`, `0.5`.
    Source: LinearControlSignal of the tutorial.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    start: float = Field(ge=0)
    end: float = Field(ge=0)
    states: int = Field(default=1, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            return value
        parts = str(value).split(":")
        if len(parts) == 1:
            return {"start": parts[0], "end": parts[0]}
        if len(parts) == 3:
            return {"start": parts[0], "end": parts[1], "states": parts[2].replace("_", "")}
        raise ValueError("write a schedule as one number or as start:end:states, such as 1:0.1:1000000")

    @model_serializer
    def _to_text(self) -> str:
        return str(self)

    def at(self, states: int) -> float:
        """The value after `states` states.

        Raises:
            ValueError: `states` is negative.
        """
        if states < 0:
            raise ValueError(f"states is {states}; it must be at least 0")
        if states >= self.states:
            return self.end
        return states * ((self.end - self.start) / self.states) + self.start

    def __str__(self) -> str:
        if self.start == self.end and self.states == 1:
            return _text(self.start)
        return f"{_text(self.start)}:{_text(self.end)}:{self.states}"


def _text(value: float) -> str:
    """A short text that is parsed as exactly `value`."""
    return f"{value:.12g}" if float(f"{value:.12g}") == value else repr(value)
