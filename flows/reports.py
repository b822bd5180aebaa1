"""What the Prefect UI and the log show of a training run."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact

UPDATE_SECONDS = 5.0


class ProgressReport:
    """A progress artifact of the flow run, brought up to date every few seconds at most."""

    def __init__(self, run_name: str, fraction: float) -> None:
        created: Any = create_progress_artifact(
            progress=_percent(fraction), key="training", description=f"Training {run_name}"
        )
        self._artifact: UUID = created
        self._updated = time.monotonic()
        self._percent = _percent(fraction)

    def update(self, summary: Mapping[str, float]) -> None:
        """Take note of a finished cycle."""
        self._percent = _percent(summary["fraction"])
        if time.monotonic() - self._updated >= UPDATE_SECONDS:
            self.finish()

    def finish(self) -> None:
        """Show what is known now."""
        update_progress_artifact(self._artifact, progress=self._percent)
        self._updated = time.monotonic()


def cycle_line(summary: Mapping[str, float]) -> str:
    """One line about a finished cycle."""
    score = summary.get("score/mean_100", math.nan)
    return (
        f"cycle {summary['counter/cycles']:.0f}"
        f" | {summary['counter/states']:,.0f} states"
        f" | epsilon {summary['schedule/epsilon']:.3f}"
        f" | mean score {'-' if math.isnan(score) else f'{score:.2f}'}"
        f" | loss {summary['loss/mean']:.4f}"
    )


def _percent(fraction: float) -> float:
    return round(min(1.0, fraction) * 100, 2)
