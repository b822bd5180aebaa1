"""Files of a real training that are damaged while it is away; `make crash-test` does it more often."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from harness import Laboratory, build, from_now_on, kind_of

from storage.units.unit import CHECKPOINT, EXPERIENCE, TARGETS

DAMAGES = max(4, int(os.environ.get("CORRUPTIONS", "0")) // 10)
NEWEST = {(CHECKPOINT, 1), (EXPERIENCE, 2), (TARGETS, 2)}
KINDS = ("flipped bit", "truncated", "deleted", "swapped")


def test_a_damaged_run_goes_on_from_what_is_whole_and_ends_as_if_nothing_had_happened(
    memory: Path, figure: Callable[[int, str, str], None]
) -> None:
    laboratory = build(memory / "damaged", keep_cycles=2)
    reference = laboratory.finish()
    phase = [index for index, name in enumerate(laboratory.phases()[0]) if kind_of(name) == "optimization"][1]
    laboratory.reset()
    laboratory.start().kill_in(phase, 0)  # experience and targets of two cycles, checkpoints 0 and 1
    interrupted = from_now_on(laboratory, "interrupted")
    done: Counter[str] = Counter()
    for number in range(DAMAGES):
        kind = KINDS[number % len(KINDS)]
        interrupted.reset()
        damage(interrupted, kind, random.Random(number))
        done[kind] += 1
        assert interrupted.finish_anew() == reference, (kind, number)
    counts = ", ".join(f"{count} {kind}" for kind, count in done.items())
    figure(7, f"files of an interrupted run: {counts}", f"{DAMAGES} of {DAMAGES} digests are the undisturbed run's")


def damage(laboratory: Laboratory, kind: str, draws: random.Random) -> None:
    """Damage one committed file (two, if they are swapped) of one unit that the run would go on from."""
    units = [unit for unit in laboratory.units() if (unit.kind, unit.cycle) in NEWEST]
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
