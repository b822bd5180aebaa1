"""Output on the terminal: progress and tables."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from dqn.metrics import COUNTER_CYCLES, COUNTER_STATES, cycle_line
from storage.errors import as_line
from tasks.progress import progress

PLAIN_SECONDS = 10.0
TABLE_SECONDS = 60.0

_waiting = logging.getLogger("storage.lease")  # warns that it waits for the end of a lease, or that the run is lost


class Display(logging.Handler):
    """Context manager that shows the records of `tasks.progress`, and the warnings of `storage.lease`, on stderr.

    On a terminal the progress is a live line; elsewhere a plain line every `PLAIN_SECONDS`.
    """

    def __init__(self) -> None:
        super().__init__()
        console = Console(file=sys.stderr)
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self.run_id: str | None = None  # of the run that trains
        self._summary: dict[str, float] = {}
        self._first: tuple[float, float] | None = None  # time in seconds and states at the end of the first cycle
        self._stages: dict[str, tuple[int, float]] = {}  # by task: its cycle, and how much is done in percent
        self._last_shown = 0.0
        self._rows: list[list[str]] = []  # of the table that was shown last

    def __enter__(self) -> Display:
        for logger in (progress, _waiting):
            logger.addHandler(self)
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for logger in (progress, _waiting):
            logger.removeHandler(self)
        if self._live:
            self._live.stop()

    def emit(self, record: logging.LogRecord) -> None:
        """Show one record."""
        if record.name == _waiting.name:
            if self._live:
                self._live.console.print(record.getMessage(), highlight=False)
            else:
                print(record.getMessage(), file=sys.stderr, flush=True)
            return
        if run_id := getattr(record, "run_id", None):
            self.run_id = run_id
            return
        if columns := getattr(record, "columns", None):
            self._show_table(record.getMessage(), columns, getattr(record, "rows", []))
            return
        now = time.monotonic()
        summary: dict[str, float] | None = getattr(record, "summary", None)
        if stage := getattr(record, "stage", None):
            fields: dict[str, Any] = record.__dict__
            others = {name: other for name, other in self._stages.items() if other[0] != fields["cycle"]}
            self._stages = {**others, stage: (fields["cycle"], 100 * fields["done"] / fields["total"])}
        if summary:
            self._summary = summary
            done = summary[COUNTER_CYCLES]
            self._stages = {name: stage for name, stage in self._stages.items() if stage[0] > done}
            self._first = self._first or (now, summary[COUNTER_STATES])
        elif self._live is None or now - self._last_shown < 0.2:
            return
        if self._live:
            self._live.update(Text(self._line(now), overflow="ellipsis", no_wrap=True), refresh=True)
        elif now - self._last_shown >= PLAIN_SECONDS or self._summary.get("fraction", 0) >= 1:
            print(self._line(now), file=sys.stderr, flush=True)
        else:
            return
        self._last_shown = now

    def _show_table(self, line: str, columns: Sequence[str], rows: list[list[str]]) -> None:
        """Show the trials of a sweep: as a live table, or as a line when it has changed."""
        if self._live:
            self._live.update(Group(_table(columns, rows, set()), Text(line, no_wrap=True)), refresh=True)
        elif rows != self._rows or time.monotonic() - self._last_shown >= TABLE_SECONDS:
            print(line, file=sys.stderr, flush=True)
            self._rows, self._last_shown = rows, time.monotonic()

    def _line(self, now: float) -> str:
        parts: list[str] = []
        if self._summary:
            parts = [cycle_line(self._summary), *self._pace(now)]
        parts += [f"{name} {percent:.0f} %" for name, (_, percent) in self._stages.items()]
        return " | ".join(parts)

    def _pace(self, now: float) -> list[str]:
        """States per second since the first cycle ended, and the time left at that pace."""
        assert self._first
        first_time, first_states = self._first
        states, fraction = self._summary[COUNTER_STATES], self._summary["fraction"]
        if states <= first_states:
            return []
        pace = (states - first_states) / (now - first_time)
        left = states * (1 / fraction - 1) / pace
        return [f"{pace:,.0f} states/s", f"{_duration(max(0.0, left))} left"]


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"


def print_table(columns: Sequence[str], rows: list[list[str]], numbers: set[str]) -> None:
    """Print a table on stdout; the columns in `numbers` are aligned to the right."""
    Console(width=None if sys.stdout.isatty() else 200).print(_table(columns, rows, numbers))


def _table(columns: Sequence[str], rows: list[list[str]], numbers: set[str]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in numbers else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(as_line(cell)) for cell in row))
    return table
