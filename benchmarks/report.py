"""Results in `benchmarks/results`, and the tables in pages of the documentation that are made from them."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch

HERE = Path(__file__).resolve().parent
DOCS = HERE.parent / "docs"
END = "<!-- end -->\n"


class Row(NamedTuple):
    """A row of the table of `docs/performance.md`: a measurement, its result, a comparison, and its target."""

    measurement: str
    result: str
    comparison: str
    target: str

    def __str__(self) -> str:
        return f"| {' | '.join(self)} |"


class Table(NamedTuple):
    """A table of a page, between the comment that names the command which measures it and the next end."""

    page: Path
    command: str
    machine: str  # where it was measured
    lines: list[str]

    def placed(self, text: str) -> str:
        """The text of the page with this table."""
        start = f"<!-- measured by {self.command} -->\n"
        before, _, rest = text.partition(start)
        after = rest.partition(END)[2]
        lines = "\n".join(self.lines)
        return f"{before}{start}\nOn {self.machine}.\n\n{lines}\n\n{END}{after}"

    def is_current(self) -> bool:
        """Whether the page has the table."""
        text = self.page.read_text()
        return self.placed(text) == text


def write(tables: Iterable[Table]) -> None:
    """Write tables into their pages."""
    for table in tables:
        table.page.write_text(table.placed(table.page.read_text()))


def results_file(name: str) -> Path:
    """The file of the raw results of a script."""
    return HERE / "results" / f"{name}.json"


def read_results(name: str) -> dict[str, Any]:
    """The raw results of a script."""
    found: dict[str, Any] = json.loads(results_file(name).read_text())
    return found


def write_results(name: str, results: dict[str, Any]) -> None:
    """Write the raw results of a script."""
    results_file(name).write_text(json.dumps(results, indent=1) + "\n")


def machine() -> str:
    """The processor, the number of its cores, the GPU, and the version of torch."""
    model = cpu_fields().get("model name", platform.machine())
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{model}, {len(os.sched_getaffinity(0))} cores, {device}, torch {torch.__version__}"


def cpu_fields() -> dict[str, str]:
    """The fields of the first processor in /proc/cpuinfo by name; empty on another system."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().partition("\n\n")[0].splitlines() if path.exists() else []
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
