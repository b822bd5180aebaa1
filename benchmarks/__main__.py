"""`make bench`: measures every figure of docs/performance.md."""

from __future__ import annotations

from typing import Any

from benchmarks import evaluation, pipeline, precision, report, speed
from benchmarks.report import DOCS, Row, Table
from dqn.config import make_config
from dqn.hardware import resolve

NAME, PARTS = "speed", (speed, evaluation, precision, pipeline)


def tables(results: dict[str, Any]) -> list[Table]:
    """The table of the page, from the raw results."""
    rows = [row for part in PARTS for row in part.rows(results)]
    header = [str(Row("measurement", "result", "compared with", "target")), "|---|---|---|---|"]
    return [Table(DOCS / "performance.md", "make bench", results["machine"], [*header, *map(str, rows)])]


def main() -> None:
    """Run the benchmarks of speed and write their results."""
    config = resolve(make_config())
    results: dict[str, Any] = {"machine": report.machine(), "precision": config.precision, "threads": config.threads}
    for part in PARTS:
        part.measure(results)
        for row in part.rows(results):
            print(row, flush=True)
    precision.draw(results)
    report.write_results(NAME, results)
    report.write(tables(results))


if __name__ == "__main__":
    main()
