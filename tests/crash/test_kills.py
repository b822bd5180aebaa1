"""SIGKILL in the middle of a real training; `make crash-test` does it far more often."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path

import numpy as np
from harness import CHILD_SECONDS, Laboratory, Outcome, build, chosen, kind_of, start
from trainer import FAILED, Fault

from storage.units.unit import CHECKPOINT

KILLS = int(os.environ.get("CRASH_KILLS", "5"))
REPEATS = int(os.environ.get("CRASH_REPEATS", "1"))
RACES = int(os.environ.get("RACES", "1"))
KINDS = ("play", "sweep", "optimization", "checkpoint", "commit")
FOREVER = 100_000  # cycles

Tell = Callable[[int, str, str], None]


def test_the_same_seed_gives_the_same_run_and_another_seed_another(
    laboratory: Laboratory, reference: Outcome, memory: Path, figure: Tell
) -> None:
    for _ in range(REPEATS):
        laboratory.reset()
        assert laboratory.finish() == reference
    assert build(memory / "other-seed", seed=1).finish().digest != reference.digest
    assert reference.doubled == 0
    assert reference.status == "FINISHED"
    figure(1, f"{REPEATS} runs more, and one of another seed", f"{REPEATS} times the same digest; the other's differs")


def test_a_run_killed_at_random_instants_ends_as_if_nothing_had_happened(
    laboratory: Laboratory, reference: Outcome, figure: Tell
) -> None:
    draws = np.random.default_rng(0)
    phases, seconds, _ = laboratory.phases()
    died: Counter[str] = Counter()
    over_and_over = 0
    for number in range(KILLS):
        laboratory.reset()
        five_times = number % 10 == 9
        over_and_over += five_times
        for turn in range(5 if five_times else 1):
            kind = KINDS[(number + turn) % len(KINDS)]
            phase = draws.choice([index for index, name in enumerate(phases) if kind_of(name) == kind])
            died[laboratory.start().kill_in(phase, draws.random() * seconds[phase])] += 1
            laboratory.units()
        assert laboratory.finish() == reference
    in_time = sum(died[phase] for phase in ("start", *KINDS))
    assert in_time > died.total() / 2, "most of them were in time"
    assert KILLS < 100 or all(died[kind] for kind in KINDS)
    tried = f"SIGKILL at {died.total()} random instants of {KILLS} runs, {over_and_over} of them killed five times"
    figure(2, f"{tried}: {in_words(died)}", f"{KILLS} of {KILLS} digests are the undisturbed run's")
    points = len(reference.metrics)
    figure(9, f"the {points} points of metrics in each of those {KILLS} runs", "0 missing, 0 doubled, 0 other")


def test_a_run_killed_over_and_over_leaves_nothing_behind(laboratory: Laboratory, figure: Tell) -> None:
    draws = np.random.default_rng(1)
    kills = max(3, KILLS // 2)
    lasting = sum(laboratory.phases()[1])
    laboratory.reset()
    died: Counter[str] = Counter()
    drafts, units, size = 0, 0, 0
    for _ in range(kills):
        died[laboratory.start(cycles=FOREVER).kill_in(0, draws.random() * lasting)] += 1
        drafts = max(drafts, len(list(laboratory.home.glob("staging/*/*"))))
        found = laboratory.units()
        units = max(units, *Counter(unit.kind for unit in found).values())
        size = max(size, sum(path.stat().st_size for path in laboratory.home.rglob("*") if path.is_file()))
        assert open_files_below(laboratory.home) == [], "no process is left"
    told = start("statuses", str(laboratory.home))
    assert told.join() == 0
    assert told.said() == [["killed"]], "no run is RUNNING that is not"
    assert drafts <= 1
    assert units <= 2, "the retained units and one"
    cycles = max(unit.cycle for unit in found if unit.kind == CHECKPOINT) + 1
    after = laboratory.finish(cycles)
    laboratory.reset()
    assert after == laboratory.finish(cycles), "not a file more than the undisturbed run leaves"
    came = f"{units} units of a kind, {drafts} drafts, {size / 1e6:.0f} MB at most; nothing left of them in the end"
    figure(12, f"{kills} kills of one run within {cycles} cycles: {in_words(died)}", came)


def test_a_kill_at_any_operation_leaves_the_old_state_or_the_new(
    one_cycle: Laboratory, one_cycle_reference: Outcome, operations: int, figure: Tell
) -> None:
    every = chosen(operations, purpose=1)
    for at in every:
        one_cycle.reset()
        assert one_cycle.start(Fault(at)).join() == -9, f"operation {at}"
        one_cycle.units()
        assert one_cycle.finish() == one_cycle_reference, f"operation {at}"
    tried = f"SIGKILL at {len(every)} of the {operations} operations on files of a cycle, SQLite's included"
    figure(3, tried, f"{len(every)} times every unit whole or absent, and the undisturbed digest after resuming")


def test_a_kill_at_any_operation_of_an_evaluation(
    evaluation: Laboratory, evaluation_reference: Outcome, figure: Tell
) -> None:
    operations = evaluation.phases()[2]
    every = chosen(operations, purpose=2)
    for at in every:
        evaluation.reset()
        assert evaluation.start(Fault(at)).join() == -9, f"operation {at}"
        evaluation.units()
        assert evaluation.finish() == evaluation_reference, f"operation {at}"
    tried = f"all four tasks twice in every run above; SIGKILL at {len(every)} of {operations} operations of evaluate"
    figure(8, tried, "identical units, metrics and files")


def test_a_run_goes_on_from_mlflow_alone(laboratory: Laboratory, reference: Outcome, figure: Tell) -> None:
    phases = laboratory.phases()[0]
    # A commit of the first cycle, the optimization of the second, or at any phase
    tried = (3, 11) if KILLS < 100 else range(len(phases))
    for phase in tried:
        laboratory.reset()
        laboratory.start().kill_in(phase, 0)
        for directory in ("replay", "staging", "locks"):
            shutil.rmtree(laboratory.home / directory, ignore_errors=True)  # at the first phases some are not there yet
        assert not (laboratory.home / "replay").exists()
        assert laboratory.finish() == reference
    came = f"{len(tried)} of {len(tried)} digests are the undisturbed run's"
    figure(13, f"a kill at the beginning of {len(tried)} phases, then all but MLflow's files deleted", came)


def test_of_two_trainers_one_proceeds_and_the_other_says_who_does(laboratory: Laboratory, figure: Tell) -> None:
    for _ in range(RACES):
        laboratory.reset()
        racers = [laboratory.start(cycles=FOREVER) for _ in range(2)]
        assert wait([racer.process.sentinel for racer in racers], CHILD_SECONDS)
        (loser,) = [racer for racer in racers if not racer.process.is_alive()]
        (winner,) = [racer for racer in racers if racer is not loser]
        assert loser.join() == FAILED
        message, _ = loser.said()
        assert f"is being trained by process {winner.process.pid} on " in message
        assert winner.pipe.recv() == "play", "it trains"
        winner.kill()
        assert laboratory.start(cycles=FOREVER).kill_in(0, 0) != "the end", "a killed holder blocks nobody"
    tried = f"{RACES} races of two trainers"
    figure(10, tried, f"{RACES} times one trains, the other names its process; the killed one's run goes on at once")


def test_reading_the_outcome_notices_a_difference(laboratory: Laboratory, reference: Outcome) -> None:
    laboratory.reset()
    laboratory.finish()
    (laboratory.home / "stray").write_text("left over")
    assert laboratory.outcome() != reference


def in_words(counts: Counter[str]) -> str:
    return ", ".join(f"{count} in {name}" for name, count in counts.most_common())


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
