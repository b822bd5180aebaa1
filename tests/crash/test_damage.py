"""Damage to files of a real training between its end and its resume; `make crash-test` does more of it."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from harness import CrashRun, build, phase_kind, snapshot

from storage.units.unit import CHECKPOINT, EXPERIENCE, TARGETS

DAMAGES = max(4, int(os.environ.get("CORRUPTIONS", "0")) // 10)
NEWEST = {(CHECKPOINT, 1), (EXPERIENCE, 2), (TARGETS, 2)}
KINDS = ("flipped bit", "truncated", "deleted", "swapped")


def test_damaged_run_resumes_to_the_undisturbed_outcome(
    ram_directory: Path, figure: Callable[[int, str, str], None]
) -> None:
    """A resume uses the newest units that are whole, and makes the damaged ones again."""
    run = build(ram_directory / "damaged", keep_cycles=2)
    reference = run.finish()
    phase = [index for index, name in enumerate(run.phases()[0]) if phase_kind(name) == "optimization"][1]
    run.reset()
    run.start().kill_in(phase, 0)  # leaves experience and targets of two cycles, and checkpoints 0 and 1
    interrupted = snapshot(run, "interrupted")
    counts: Counter[str] = Counter()
    for number in range(DAMAGES):
        kind = KINDS[number % len(KINDS)]
        interrupted.reset()
        damage(interrupted, kind, random.Random(number))
        counts[kind] += 1
        assert interrupted.finish_after_damage() == reference, (kind, number)
    test = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    figure(7, f"files of an interrupted run: {test}", f"{DAMAGES} of {DAMAGES} digests equal the undisturbed run's")


def damage(run: CrashRun, kind: str, draws: random.Random) -> None:
    """Damage one committed file (two for "swapped") of one unit that a resume would use."""
    units = [unit for unit in run.units() if (unit.kind, unit.cycle) in NEWEST]
    unit = draws.choice(units)
    one, other = (unit.directory / name for name in draws.sample(["manifest.json", *unit.files], 2))
    data = bytearray(one.read_bytes())
    if kind == "deleted":
        one.unlink()
    elif kind == "swapped":
        one.write_bytes(other.read_bytes())
        other.write_bytes(data)
    elif kind == "truncated":
        one.write_bytes(data[: draws.randrange(len(data))])
    else:
        data[draws.randrange(len(data))] ^= 1 << draws.randrange(8)
        one.write_bytes(data)
