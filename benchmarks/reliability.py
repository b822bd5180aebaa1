"""What `make crash-test` found out: `benchmarks/results/reliability.json` and the table of `docs/reliability.md`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks import report

PAGE, RESULTS = report.HERE.parent / "docs" / "reliability.md", report.HERE / "results" / "reliability.json"


def main() -> None:
    """Collect the figures that the tests left in a directory, given as the one argument."""
    figures = [json.loads(path.read_text()) for path in sorted(Path(sys.argv[1]).glob("*.json"))]
    RESULTS.write_text(json.dumps({"machine": report.machine(), "figures": figures}, indent=2) + "\n")
    rows = [f"| {each['promise']} | {each['tried']} | {each['came of it']} |" for each in figures]
    report.replace_table(
        PAGE, "make crash-test", ["| promise | what was tried | what came of it |", "|---|---|---|", *rows]
    )


if __name__ == "__main__":
    main()
