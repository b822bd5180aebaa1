"""Files, variables and tags that a stranger may have changed are read, or refused in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

READERS = [
    *["manifest", "checkpoint", "experience", "targets", "evaluation"],
    *["agent", "configuration", "sweep", "environment", "store"],
]
INPUTS = int(os.environ.get("FUZZ_INPUTS", "0"))  # of each reader; 0 for a sample in one process


def failures_of(readers: str, inputs: int) -> list[dict[str, Any]]:
    """The inputs that were not answered in one line, as `hostile.py` reports them."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", Path(__file__).with_name("hostile.py"), readers, str(inputs)],
        stdout=subprocess.PIPE,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def expected() -> list[tuple[str, int]]:
    """Readers and numbers of inputs: a sample in one process by default, without the store, which takes 0.2 s each."""
    if not INPUTS:
        return [(",".join(READERS[:-1]), 60)]
    return [(reader, INPUTS // 10 if reader == "store" else INPUTS) for reader in READERS]


@pytest.mark.timeout(86_400 if INPUTS else 300)
@pytest.mark.parametrize(("readers", "inputs"), expected())
def test_changed_files_are_read_or_refused_in_one_line(readers: str, inputs: int) -> None:
    found = failures_of(readers, inputs)
    assert not found, "\n".join(
        f"{each['reader']} {each['input']}: {each['problem']}\n{each['trace']}" for each in found[:3]
    )
