"""Results of `make crash-test`, in `benchmarks/results/reliability.json` and `docs/reliability-results.md`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks import report

PAGE, RESULTS = report.HERE.parent / "docs" / "reliability-results.md", report.HERE / "results" / "reliability.json"


def main() -> None:
    """Collect the figures that the tests wrote to the directory which the argument names."""
    figures = [json.loads(path.read_text()) for path in sorted(Path(sys.argv[1]).glob("*.json"))]
    RESULTS.write_text(json.dumps({"machine": report.machine(), "figures": figures}, indent=2) + "\n")
    rows = [f"| {each['promise']} | {each['test']} | {each['result']} |" for each in figures]
    report.replace_table(PAGE, "make crash-test", ["| promise | test | result |", "|---|---|---|", *rows])


if __name__ == "__main__":
    main()
