"""Results of `make crash-test`, in `benchmarks/results/reliability.json` and `docs/reliability-results.md`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.report import DOCS, Table

NAME = "reliability"


def main() -> None:
    """Collect the figures that the tests wrote to the directory which the argument names."""
    figures = [json.loads(path.read_text()) for path in sorted(Path(sys.argv[1]).glob("*.json"))]
    results = {"machine": report.machine(), "figures": figures}
    report.write_results(NAME, results)
    report.write(tables(results))


def tables(results: dict[str, Any]) -> list[Table]:
    """The table of the page, from the raw results."""
    rows = [f"| {each['promise']} | {each['test']} | {each['result']} |" for each in results["figures"]]
    lines = ["| promise | test | result |", "|---|---|---|", *rows]
    return [Table(DOCS / "reliability-results.md", "make crash-test", results["machine"], lines)]


if __name__ == "__main__":
    main()
