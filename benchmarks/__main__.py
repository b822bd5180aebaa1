"""`make bench`: measures every figure of docs/performance.md."""

from __future__ import annotations

from typing import Any

from benchmarks import evaluation, pipeline, precision, report, speed
from dqn.config import make_config
from dqn.hardware import resolve


def main() -> None:
    """Run the benchmarks of speed and write their results."""
    config = resolve(make_config())
    results: dict[str, Any] = {"machine": report.machine(), "precision": config.precision, "threads": config.threads}
    rows = []
    for part in (speed, evaluation, precision, pipeline):
        for row in part.rows(results):
            rows.append(row)
            print(row, flush=True)
    report.write(results, rows)


if __name__ == "__main__":
    main()
