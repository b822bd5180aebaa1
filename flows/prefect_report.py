"""What the Prefect UI and the log show of a training run."""

from __future__ import annotations

import json
import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any
from uuid import UUID

import httpx
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
)
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate
from prefect.context import SettingsContext, get_settings_context
from prefect.exceptions import PrefectException
from prefect.logging import get_logger
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES

from dqn.metrics import (
    COUNTER_CYCLES,
    COUNTER_STATES,
    ESTIMATION_ERROR_MEAN,
    LOSS_MEAN,
    OPTIMIZATION_EPOCHS,
    Q_VALUES_AFTER_MEAN,
    Q_VALUES_BEFORE_MEAN,
    SCHEDULE_EPSILON,
    SCORE_MEAN_100,
)

UPDATE_SECONDS = 30.0  # each update is an event in Prefect's database, too
LOG_SECONDS = 60.0
ROWS = 20


class TrainingReport:
    """Artifacts of the flow run: progress, a table of cycles, a link to MLflow; and lines in its log.

    All are brought up to date every few seconds at most, so that a long run stays small in Prefect's
    database. A report that cannot be sent is told in the log; the training goes on.
    """

    def __init__(self, run_id: str, run_name: str, mlflow_address: str, fraction: float) -> None:
        self._log = get_logger("flow_runs.training")
        # Nobody waits for a report; another follows soon. Made once, for Prefect takes a tenth of a second to make it.
        now = get_settings_context()
        hasty = now.settings.copy_with_update({PREFECT_CLIENT_MAX_RETRIES: 0})
        self._without_retries = SettingsContext(profile=now.profile, settings=hasty)
        self._key, self._name = run_id[:8], run_name
        self._rows: deque[dict[str, Any]] = deque(maxlen=ROWS)
        self._summary: Mapping[str, float] = {"fraction": fraction}
        self._updated = self._logged = -math.inf
        self._before: tuple[float, float] | None = None  # when the last row was made, and its states
        self._send(
            lambda: create_link_artifact(
                link=mlflow_address,
                link_text=f"{run_name} in MLflow",
                key=f"mlflow-{self._key}",
                description=f"Metrics and checkpoints of **{run_name}**.",
            )
        )
        self._progress: UUID | None = self._send(
            lambda: create_progress_artifact(
                progress=_percent(fraction), key=f"progress-{self._key}", description=f"Training **{run_name}**."
            )
        )
        self._table: UUID | None = None

    def update(self, summary: Mapping[str, float], log: Callable[[str], None]) -> None:
        """Take note of a finished cycle."""
        self._summary, now = summary, time.monotonic()
        if now - self._logged >= LOG_SECONDS:
            log(cycle_line(summary))
            self._logged = now
        if now - self._updated >= UPDATE_SECONDS:
            self.show()

    def show(self) -> None:
        """Show what is known now."""
        if COUNTER_STATES in self._summary:
            self._rows.appendleft(self._row())
        rows, progress = list(self._rows), _percent(self._summary["fraction"])
        if shown := self._progress:
            self._send(lambda: _update(shown, progress))
        if table := self._table:
            self._send(lambda: _update(table, json.dumps(rows)))
        elif rows:
            self._table = self._send(
                lambda: create_table_artifact(
                    table=rows, key=f"cycles-{self._key}", description=f"Cycles of **{self._name}**, the newest first."
                )
            )
        self._updated = time.monotonic()

    def finish(self, log: Callable[[str], None], next_steps: str) -> None:
        """Show the end of this flow run's part of the training."""
        self.show()
        if COUNTER_STATES not in self._summary:
            log("there was nothing left to do")
            return
        line = cycle_line(self._summary)
        log(line)
        text = f"## {self._name}\n\n{line.replace('|', '·')}\n\n{next_steps}\n"
        self._send(lambda: create_markdown_artifact(text, key=f"summary-{self._key}", description="Where it stands."))

    def _row(self) -> dict[str, Any]:
        summary, now = self._summary, time.monotonic()
        states = summary[COUNTER_STATES]
        pace = (states - self._before[1]) / (now - self._before[0]) if self._before else math.nan
        self._before = now, states
        figures = {
            "cycle": (summary[COUNTER_CYCLES], ",.0f"),
            "states": (states, ",.0f"),
            "epsilon": (summary[SCHEDULE_EPSILON], ".3f"),
            "mean score": (summary.get(SCORE_MEAN_100, math.nan), ".2f"),
            "Q before": (summary[Q_VALUES_BEFORE_MEAN], ".3f"),
            "Q after": (summary[Q_VALUES_AFTER_MEAN], ".3f"),
            "mean error": (summary[ESTIMATION_ERROR_MEAN], ".3f"),
            "loss": (summary[LOSS_MEAN], ".4f"),
            "epochs": (summary[OPTIMIZATION_EPOCHS], ".1f"),
            "states/s": (pace, ",.0f"),
        }
        # Empty where there is no figure yet: a dash would be shown as the dot of a list.
        return {name: "" if math.isnan(value) else format(value, how) for name, (value, how) in figures.items()}

    def _send(self, call: Callable[[], Any]) -> Any:
        try:
            with self._without_retries:
                return call()
        except (httpx.HTTPError, PrefectException) as error:
            self._log.warning("a report could not be sent to Prefect: %s", error)
            return None


def cycle_line(summary: Mapping[str, float]) -> str:
    """One line about a finished cycle."""
    score = summary.get(SCORE_MEAN_100, math.nan)
    return (
        f"cycle {summary[COUNTER_CYCLES]:.0f}"
        f" | {summary[COUNTER_STATES]:,.0f} states"
        f" | epsilon {summary[SCHEDULE_EPSILON]:.3f}"
        f" | mean score {'-' if math.isnan(score) else f'{score:.2f}'}"
        f" | loss {summary[LOSS_MEAN]:.4f}"
    )


def _update(artifact: UUID, data: Any) -> None:
    """Replace what an artifact shows, instead of making another one."""
    with get_client(sync_client=True) as client:
        client.update_artifact(artifact, ArtifactUpdate(data=data))


def _percent(fraction: float) -> float:
    return round(min(1.0, fraction) * 100, 2)
