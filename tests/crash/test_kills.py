"""SIGKILL in the middle of a real training; `make crash-test` does it far more often."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
from harness import Laboratory, Outcome, build, chosen, start
from trainer import Fault

KILLS = int(os.environ.get("CRASH_KILLS", "5"))
REPEATS = int(os.environ.get("CRASH_REPEATS", "1"))
KINDS = ("play", "sweep", "optimization", "checkpoint", "commit")


def test_the_same_seed_gives_the_same_run_and_another_seed_another(
    laboratory: Laboratory, reference: Outcome, memory: Path
) -> None:
    for _ in range(REPEATS):
        laboratory.reset()
        assert laboratory.finish() == reference
    assert build(memory / "other-seed", seed=1).finish().digest != reference.digest
    assert reference.doubled == 0
    assert reference.status == "FINISHED"


def test_a_run_killed_at_random_instants_ends_as_if_nothing_had_happened(
    laboratory: Laboratory, reference: Outcome
) -> None:
    draws = np.random.default_rng(0)
    phases, seconds, _ = laboratory.phases()
    died: Counter[str] = Counter()
    for number in range(KILLS):
        laboratory.reset()
        kind = KINDS[number % len(KINDS)]
        for _ in range(5 if number % 10 == 9 else 1):
            phase = draws.choice([index for index, name in enumerate(phases) if name == kind])
            died[laboratory.start().kill_in(phase, draws.random() * seconds[phase])] += 1
            laboratory.units()
        assert laboratory.finish() == reference
    print(f"killed in {dict(died)}, in {KILLS} runs")
    in_time = sum(died[phase] for phase in ("start", *KINDS))
    assert in_time > died.total() / 2, "most of them were in time"
    assert KILLS < 100 or all(died[kind] for kind in KINDS)


def test_a_run_killed_over_and_over_leaves_nothing_behind(laboratory: Laboratory, reference: Outcome) -> None:
    draws = np.random.default_rng(1)
    seconds = laboratory.phases()[1]
    laboratory.reset()
    drafts, units, size = 0, 0, 0
    for _ in range(max(3, KILLS // 2)):
        child = laboratory.start()
        child.kill_in(0, draws.random() * seconds[0])
        drafts = max(drafts, len(list(laboratory.home.glob("staging/*/*"))))
        units = max(units, *Counter(unit.kind for unit in laboratory.units()).values())
        size = max(size, sum(path.stat().st_size for path in laboratory.home.rglob("*") if path.is_file()))
        assert open_files_below(laboratory.home) == []
    told = start("statuses", str(laboratory.home))
    assert told.join() == 0
    assert told.said() == [["killed"]], "no run is RUNNING that is not"
    print(f"{drafts} drafts, {units} units of a kind, {size:,} bytes at most after {max(3, KILLS // 2)} kills")
    assert drafts <= 1
    assert units <= 2, "the retained units and one"
    assert laboratory.finish() == reference, "not a file more than the undisturbed run leaves"


def test_a_kill_at_any_operation_leaves_the_old_state_or_the_new(
    one_cycle: Laboratory, one_cycle_reference: Outcome, operations: int
) -> None:
    for at in chosen(operations, purpose=1):
        one_cycle.reset()
        assert one_cycle.start(Fault(at)).join() == -9
        one_cycle.units()
        assert one_cycle.finish() == one_cycle_reference, f"operation {at}"


def test_a_run_goes_on_from_mlflow_alone(laboratory: Laboratory, reference: Outcome) -> None:
    for phase in (3, 11):  # a commit of the first cycle, the optimization of the second
        laboratory.reset()
        laboratory.start().kill_in(phase, 0)
        shutil.rmtree(laboratory.home / "replay")
        assert laboratory.finish() == reference


def test_reading_the_outcome_notices_a_difference(laboratory: Laboratory, reference: Outcome) -> None:
    laboratory.reset()
    laboratory.finish()
    (laboratory.home / "stray").write_text("left over")
    assert laboratory.outcome() != reference


def open_files_below(home: Path) -> list[str]:
    """What processes still hold open in `home`."""
    held = []
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            target = str(link.readlink())
        except OSError:
            continue
        if target.startswith(f"{home}/"):
            held.append(f"{link.parts[2]}: {target}")
    return held
