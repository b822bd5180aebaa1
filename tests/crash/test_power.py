"""The power goes in the middle of a real training; `make crash-test` does it at every operation."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Laboratory, Outcome, chosen
from power import PowerLoss


def test_a_training_survives_power_loss_at_any_operation(
    memory: Path,
    one_cycle: Laboratory,
    one_cycle_reference: Outcome,
    operations: int,
    figure: Callable[[int, str, str], None],
) -> None:
    if not memory.is_relative_to("/dev/shm"):
        pytest.skip("it takes a file system in memory, which never uses an inode again")
    every = chosen(operations, purpose=3)
    for at in every:
        loss = PowerLoss(one_cycle, at)
        for pick in (lambda options: options[0], random.Random(at).choice):
            loss.leave(pick)
            assert loss.lost() == [], f"operation {at}"
            assert one_cycle.finish_anew() == one_cycle_reference, f"operation {at}"
    left = "only what was fsynced is left, or some of the rest"
    tried = f"power lost at {len(every)} of {operations} operations of a cycle, SQLite's included: {left}"
    figure(4, tried, f"0 acknowledged commits lost; {2 * len(every)} undisturbed digests after resuming")
