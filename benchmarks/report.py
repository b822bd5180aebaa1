"""Writes results: `benchmarks/results/speed.json` and tables in pages of the documentation."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any, NamedTuple

import torch

HERE = Path(__file__).resolve().parent
PAGE, RESULTS = HERE.parent / "docs" / "performance.md", HERE / "results" / "speed.json"
END = "<!-- end -->\n"


class Row(NamedTuple):
    """A row of the table of `docs/performance.md`: a measurement, its result, a comparison, and its target."""

    measurement: str
    result: str
    comparison: str
    target: str

    def __str__(self) -> str:
        return f"| {' | '.join(self)} |"


def write(results: dict[str, Any], rows: list[Row]) -> None:
    """Write the raw results and the table."""
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    table = [str(Row("measurement", "result", "compared with", "target")), "|---|---|---|---|", *map(str, rows)]
    replace_table(PAGE, "make bench", table)


def replace_table(page: Path, command: str, table: list[str]) -> None:
    """Replace the table in `page` that a comment marks as measured by `command`."""
    start = f"<!-- measured by {command} -->\n"
    before, _, rest = page.read_text().partition(start)
    after = rest.partition(END)[2]
    lines = "\n".join(table)
    page.write_text(f"{before}{start}\nOn {machine()}.\n\n{lines}\n\n{END}{after}")


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
