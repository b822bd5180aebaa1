"""Rows of the list of training runs, read from MLflow's SQLite database without MLflow, whose import takes seconds."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from dqn.metrics import COUNTER_STATES, SCORE_MEAN_100
from storage.run_lock import is_held
from storage.run_tags import MARK, PRESET
from storage.settings import Settings

_QUERY = f"""
SELECT r.name, r.run_uuid, game.value, preset.value, r.status, states.value, score.value, r.start_time,
    mark.value, shards.value
FROM runs AS r
JOIN experiments AS e ON e.experiment_id = r.experiment_id
JOIN tags AS mark ON mark.run_uuid = r.run_uuid AND mark.key = '{MARK}'
LEFT JOIN tags AS preset ON preset.run_uuid = r.run_uuid AND preset.key = '{PRESET}'
LEFT JOIN params AS game ON game.run_uuid = r.run_uuid AND game.key = 'game'
LEFT JOIN params AS shards ON shards.run_uuid = r.run_uuid AND shards.key = 'shards'
LEFT JOIN latest_metrics AS states ON states.run_uuid = r.run_uuid AND states.key = '{COUNTER_STATES}'
LEFT JOIN latest_metrics AS score ON score.run_uuid = r.run_uuid AND score.key = '{SCORE_MEAN_100}' AND NOT score.is_nan
WHERE mark.value IN ('train', 'sweep') AND r.lifecycle_stage = 'active' AND e.lifecycle_stage = 'active'
ORDER BY r.start_time DESC, r.run_uuid
"""


class RunRow(NamedTuple):
    """One training run, as the list shows it."""

    name: str
    id: str
    game: str
    preset: str
    status: str
    states: int
    score: float | None  # mean of the last 100 training episodes; None before the first episode ends
    started: str

    @classmethod
    def of(
        cls,
        name: str,
        run_id: str,
        game: str | None,
        preset: str | None,
        status: str,
        states: float | None,
        score: float | None,
        start_ms: int,
    ) -> RunRow:
        """A row from the values of MLflow."""
        started = time.strftime("%Y-%m-%d %H:%M", time.localtime(start_ms / 1000))
        return cls(
            name, run_id, game or "", preset or "", status.lower(), int(states or 0), score and float(score), started
        )


def read_rows(path: Path, settings: Settings) -> list[RunRow] | None:
    """All training runs in a SQLite database of MLflow, newest first.

    Args:
        path: of the database.
        settings: of the installation whose locks are tested.

    Returns:
        None if MLflow must list the runs: the tables or values are not as expected, or a writer may be dead.
    """
    if not path.exists():
        return []
    found = []
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            for *values, mark, shards in database.execute(_QUERY):
                row = RunRow.of(*values)
                lock = settings.lock(row.id if mark == "train" else f"sweep-{row.name}")
                if row.status == "running" and lock.exists() and not is_held(lock):
                    return None  # its writer may be dead
                if shards is not None and not (shards.isdecimal() and int(shards)):
                    return None  # damaged
                if mark == "train":
                    found.append(row)
    except (sqlite3.Error, TypeError, ValueError, OverflowError, AttributeError):
        return None
    return found
