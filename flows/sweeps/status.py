"""How far a sweep is: a table in Prefect, and records for the terminal."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

from dqn.metrics import COUNTER_STATES
from flows.prefect_report import ArtifactSender, TableArtifact
from flows.sweeps.results import TrialResult, columns, results, row
from flows.sweeps.study import Study
from tasks.progress import report_table

SHOW_SECONDS = 5.0


class SweepStatus:
    """Collects what the trainings of a sweep have done, and shows it."""

    def __init__(self, run_id: str, study: Study) -> None:
        self._study = study
        self._artifact = TableArtifact(
            f"trials-{run_id[:8]}", f"Trials of the sweep **{study.sweep.name}**, best first.", ArtifactSender()
        )
        self._lock = threading.Lock()
        self._played: dict[tuple[int, int], float] = {}  # states played, by trial and seed
        self._first: dict[tuple[int, int], float] = {}  # states played when this process first knew
        self._started = time.monotonic()
        self._shown = -SHOW_SECONDS
        self._rows: list[list[str]] = []  # that Prefect has

    def follow(self, trial: int, seed: int, summary: Mapping[str, float]) -> None:
        """Take note of a finished cycle."""
        with self._lock:
            self._first.setdefault((trial, seed), summary[COUNTER_STATES])
            self._played[trial, seed] = summary[COUNTER_STATES]

    def changed(self) -> None:
        """Show the table at the next opportunity."""
        self._shown = -SHOW_SECONDS

    def show(self) -> None:
        """Show the table, at most every few seconds."""
        if time.monotonic() - self._shown < SHOW_SECONDS:
            return
        self._shown = time.monotonic()
        found = results(self._study)
        head, rows = columns(self._study), [row(self._study, result) for result in found]
        report_table(self._line(found), head, rows)
        if rows != self._rows:  # seldom, because Prefect also stores an event per update
            self._artifact.show([dict(zip(head, each, strict=True)) for each in rows])
            self._rows = rows

    def finish(self, log: Callable[[str], None], address: str) -> None:
        """Show the table a last time, and log the best trial."""
        self.changed()
        self.show()
        best = self._study.ranking()
        if best:
            log(f"best: trial {best[0].number} with {self._study.sweep.objective} {best[0].value:.2f}; {address}")

    def _line(self, found: list[TrialResult]) -> str:
        running = {result.number for result in found if result.status == "running"}
        done = len(found) - len(running)
        parts = [f"{self._study.sweep.name}: {done} of {self._study.most_trials} trials"]
        with self._lock:
            played = {each: states for each, states in self._played.items() if each[0] in running}
            since_start = sum(self._played[each] - first for each, first in self._first.items())
        parts += [f"trial {trial} seed {seed}: {states:,.0f} states" for (trial, seed), states in played.items()]
        wanted = self._study.sweep.target.get("states")
        if wanted and since_start > 0:
            pace = since_start / (time.monotonic() - self._started)
            left = (self._study.most_trials - done) * len(self._study.sweep.seeds) * wanted - sum(played.values())
            parts.append(f"about {max(0.0, left / pace / 60):,.0f} min left")
        return " | ".join(parts)
