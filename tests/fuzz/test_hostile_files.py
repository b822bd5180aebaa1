"""Files, variables and tags that a stranger may have changed are read, or refused in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

INPUTS = int(os.environ.get("FUZZ_INPUTS", "60"))  # of each reader; a sample by default
BATCH = 3_000  # inputs of each reader in one process
FAST, SLOW = 9, 1  # readers


@pytest.mark.timeout(300 + 10 * INPUTS)
@pytest.mark.parametrize("first", range(0, INPUTS, BATCH))
def test_changed_files_are_read_or_refused_in_one_line(first: int) -> None:
    """The names of the readers, and how a single input is read again, are in `hostile.py`."""
    count = min(BATCH, INPUTS - first)
    command = [sys.executable, "-W", "ignore", Path(__file__).with_name("hostile.py"), str(count), str(first)]
    *lines, total = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.splitlines()
    found: list[dict[str, Any]] = [json.loads(line) for line in lines]
    assert not found, "\n".join(
        f"{each['reader']} {each['input']}: {each['problem']}\n{each['trace']}" for each in found[:3]
    )
    assert int(total) == FAST * count + (SLOW * count // 10 if count >= 100 else 0)
