"""Progress of a training run in the Prefect UI and in the log of its flow run."""

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
    cycle_line,
)

UPDATE_SECONDS = 30.0  # seldom, because Prefect also stores an event per update
LOG_SECONDS = 60.0
TABLE_ROWS = 20


class ArtifactSender:
    """Sends artifacts to Prefect. One that cannot be sent is logged as a warning, because the next one replaces it."""

    def __init__(self) -> None:
        self._log = get_logger("flow_runs.training")
        # No retries, because the next update replaces this one. Made once, because this takes 0.1 seconds.
        current = get_settings_context()
        settings = current.settings.copy_with_update({PREFECT_CLIENT_MAX_RETRIES: 0})
        self._without_retries = SettingsContext(profile=current.profile, settings=settings)

    def send(self, call: Callable[[], Any]) -> Any:
        """The result of `call`, or None if Prefect does not answer."""
        try:
            with self._without_retries:
                return call()
        except (httpx.HTTPError, PrefectException) as error:
            self._log.warning("an artifact could not be sent to Prefect: %s", error)
            return None


class TableArtifact:
    """A table in Prefect whose rows are replaced."""

    def __init__(self, key: str, description: str, sender: ArtifactSender) -> None:
        self._key, self._description, self._sender = key, description, sender
        self._id: UUID | None = None

    def show(self, rows: list[dict[str, Any]]) -> None:
        """Replace the rows of the table, which is created with its first row."""
        if table_id := self._id:
            self._sender.send(lambda: _update(table_id, json.dumps(rows)))
        elif rows:
            self._id = self._sender.send(
                lambda: create_table_artifact(table=rows, key=self._key, description=self._description)
            )


class TrainingReport:
    """Artifacts of the flow run (progress, a table of cycles, a link to MLflow) and lines in its log.

    Artifacts are updated at most every `UPDATE_SECONDS` and lines are logged at most every `LOG_SECONDS`, so that a
    long run stays small in Prefect's database.
    """

    def __init__(self, run_id: str, run_name: str, mlflow_address: str, fraction: float) -> None:
        self._sender = ArtifactSender()
        self._send = self._sender.send
        self._key, self._name = run_id[:8], run_name
        self._rows: deque[dict[str, Any]] = deque(maxlen=TABLE_ROWS)
        self._summary: Mapping[str, float] = {"fraction": fraction}
        self._last_update = self._last_log = -math.inf
        self._last_row: tuple[float, float] | None = None  # time in seconds and states of the newest row
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
        self._table = TableArtifact(f"cycles-{self._key}", f"Cycles of **{self._name}**, newest first.", self._sender)

    def update(self, summary: Mapping[str, float], log: Callable[[str], None]) -> None:
        """Report a finished cycle, by the names that its metrics have in MLflow."""
        self._summary, now = summary, time.monotonic()
        if now - self._last_log >= LOG_SECONDS:
            log(cycle_line(summary))
            self._last_log = now
        if now - self._last_update >= UPDATE_SECONDS:
            self.send()

    def send(self) -> None:
        """Update the artifacts."""
        if COUNTER_STATES in self._summary:
            self._rows.appendleft(self._row())
        rows, progress = list(self._rows), _percent(self._summary["fraction"])
        if progress_id := self._progress:
            self._send(lambda: _update(progress_id, progress))
        self._table.show(rows)
        self._last_update = time.monotonic()

    def finish(self, log: Callable[[str], None], next_steps: str) -> None:
        """Report the end of the flow run; `next_steps` is Markdown."""
        self.send()
        if COUNTER_STATES not in self._summary:
            log("no cycle was run: the run had reached its target already")
            return
        line = cycle_line(self._summary)
        log(line)
        text = f"## {self._name}\n\n{line.replace('|', '·')}\n\n{next_steps}\n"
        self._send(
            lambda: create_markdown_artifact(text, key=f"summary-{self._key}", description="Last cycle and next steps.")
        )

    def _row(self) -> dict[str, Any]:
        summary, now = self._summary, time.monotonic()
        states = summary[COUNTER_STATES]
        pace = (states - self._last_row[1]) / (now - self._last_row[0]) if self._last_row else math.nan
        self._last_row = now, states
        columns = {
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
        # NaN becomes an empty string, because the UI shows a dash as the bullet of a list.
        return {name: "" if math.isnan(value) else format(value, spec) for name, (value, spec) in columns.items()}


def _update(artifact: UUID, data: Any) -> None:
    """Replace the data of an artifact, instead of creating a new version of it."""
    with get_client(sync_client=True) as client:
        client.update_artifact(artifact, ArtifactUpdate(data=data))


def _percent(fraction: float) -> float:
    return round(min(1.0, fraction) * 100, 2)
