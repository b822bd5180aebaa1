"""SIGKILL in the middle of a real training; `make crash-test` kills far more often."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import wait
from pathlib import Path

import numpy as np
from harness import CHILD_SECONDS, CrashRun, Outcome, build, phase_kind, sample_operations, start
from trainer import CONFIG, FAILED, Fault

from storage.units.unit import CHECKPOINT

KILLS = int(os.environ.get("CRASH_KILLS", "5"))
REPEATS = int(os.environ.get("CRASH_REPEATS", "1"))
RACES = int(os.environ.get("RACES", "1"))
KINDS = ("play", "sweep", "optimization", "checkpoint", "commit")
ENDLESS = 100_000  # cycles; no test trains that many

Figure = Callable[[int, str, str], None]


def test_same_seed_repeats_the_run_and_another_does_not(
    run: CrashRun, reference: Outcome, ram_directory: Path, figure: Figure
) -> None:
    for _ in range(REPEATS):
        run.reset()
        assert run.finish() == reference
    assert build(ram_directory / "other-seed", seed=1).finish().digest != reference.digest
    assert reference.duplicates == 0
    assert reference.status == "FINISHED"
    test = f"{REPEATS} more runs with the same seed, and one with another seed"
    figure(1, test, f"{REPEATS} times the same digest; the other seed gives another one")


def test_run_killed_at_random_instants_resumes_exactly(run: CrashRun, reference: Outcome, figure: Figure) -> None:
    """Every tenth run is killed five times in a row."""
    draws = np.random.default_rng(0)
    phases, seconds, _ = run.phases()
    deaths: Counter[str] = Counter()
    repeatedly = 0
    for number in range(KILLS):
        run.reset()
        five_times = number % 10 == 9
        repeatedly += five_times
        for turn in range(5 if five_times else 1):
            kind = KINDS[(number + turn) % len(KINDS)]
            phase = draws.choice([index for index, name in enumerate(phases) if phase_kind(name) == kind])
            deaths[run.start().kill_in(phase, draws.random() * seconds[phase])] += 1
            run.units()
        assert run.finish() == reference
    before_end = sum(deaths[phase] for phase in ("start", *KINDS))
    assert before_end > deaths.total() / 2
    assert KILLS < 100 or all(deaths[kind] for kind in KINDS)
    test = f"SIGKILL at {deaths.total()} random instants of {KILLS} runs, {repeatedly} of them killed five times"
    figure(2, f"{test}: {listed(deaths)}", f"{KILLS} of {KILLS} digests equal the undisturbed run's")
    points = len(reference.metrics)
    figure(9, f"the {points} points of metrics in each of those {KILLS} runs", "0 missing, 0 duplicated, 0 different")


def test_run_killed_repeatedly_leaves_no_files_or_processes(run: CrashRun, figure: Figure) -> None:
    draws = np.random.default_rng(1)
    kills = max(3, KILLS // 2)
    duration = sum(run.phases()[1])
    run.reset()
    deaths: Counter[str] = Counter()
    drafts, units, size = 0, 0, 0
    for _ in range(kills):
        deaths[run.start(cycles=ENDLESS).kill_in(0, draws.random() * duration)] += 1
        drafts = max(drafts, len(list(run.home.glob("staging/*/*"))))
        found = run.units()
        units = max(units, *Counter(unit.kind for unit in found).values())
        size = max(size, sum(path.stat().st_size for path in run.home.rglob("*") if path.is_file()))
        assert open_files_below(run.home) == []
    child = start("statuses", str(run.home))
    assert child.join() == 0
    assert child.messages() == [["killed"]]
    assert drafts <= 1
    assert units <= 2 + (CONFIG["overlap"] == "yes")  # those that the run retains, and one more
    cycles = max(unit.cycle for unit in found if unit.kind == CHECKPOINT) + 1
    outcome = run.finish(cycles)
    run.reset()
    assert outcome == run.finish(cycles)  # this includes the names of all files
    test = f"{kills} kills of one run within {cycles} cycles: {listed(deaths)}"
    result = f"at most {units} units of a kind, {drafts} drafts and {size / 1e6:.0f} MB; none of them left at the end"
    figure(12, test, result)


def test_kill_at_any_operation_leaves_whole_units(
    one_cycle_run: CrashRun, one_cycle_reference: Outcome, operation_count: int, figure: Figure
) -> None:
    """Each unit is either whole or absent, and the resumed run is undisturbed."""
    operations = sample_operations(operation_count, purpose=1)
    for at in operations:
        kill_and_resume(one_cycle_run, at, one_cycle_reference)
    count = f"{len(operations)} of the {operation_count} operations on files of a cycle, including those of SQLite"
    result = f"{len(operations)} times each unit is whole or absent, and the digest after resuming is undisturbed"
    figure(3, f"SIGKILL at {count}", result)


def test_kill_at_any_operation_of_an_evaluation(
    evaluation_run: CrashRun, evaluation_reference: Outcome, figure: Figure
) -> None:
    operation_count = evaluation_run.phases()[2]
    operations = sample_operations(operation_count, purpose=2)
    for at in operations:
        kill_and_resume(evaluation_run, at, evaluation_reference)
    kills = f"SIGKILL at {len(operations)} of {operation_count} operations of `evaluate`"
    figure(8, f"all four tasks twice in every run above; {kills}", "identical units, metrics and files")


def kill_and_resume(run: CrashRun, at: int, reference: Outcome) -> None:
    """Kill a run at operation number `at`, and check its units and the outcome of the resumed run."""
    run.reset()
    assert run.start(Fault(at)).join() == -9, f"operation {at}"
    run.units()
    assert run.finish() == reference, f"operation {at}"


def test_run_resumes_from_mlflow_data_alone(run: CrashRun, reference: Outcome, figure: Figure) -> None:
    phases = run.phases()[0]
    # Phase 3 is a commit of the first cycle, phase 11 the optimization of the second
    tested = (3, 11) if KILLS < 100 else range(len(phases))
    for phase in tested:
        run.reset()
        run.start().kill_in(phase, 0)
        for directory in ("replay", "staging", "locks"):
            shutil.rmtree(run.home / directory, ignore_errors=True)  # the first phases precede some of them
        assert not (run.home / "replay").exists()
        # A kill that comes after the commit of the last checkpoint leaves nothing to play again.
        done = any(unit.kind == CHECKPOINT and unit.cycle == run.cycles for unit in run.units())
        files = {name for name in reference.files if not (done and name.startswith("replay/"))}
        assert run.finish() == replace(reference, files=frozenset(files)), phases[phase]
    test = f"a kill at the beginning of {len(tested)} phases, then everything but MLflow's files deleted"
    figure(13, test, f"{len(tested)} of {len(tested)} digests equal the undisturbed run's")


def test_second_trainer_is_refused_with_the_first_ones_pid(run: CrashRun, figure: Figure) -> None:
    """After the first trainer is killed, another one can train at once."""
    for _ in range(RACES):
        run.reset()
        racers = [run.start(cycles=ENDLESS) for _ in range(2)]
        assert wait([racer.process.sentinel for racer in racers], CHILD_SECONDS)
        (loser,) = [racer for racer in racers if not racer.process.is_alive()]
        (winner,) = [racer for racer in racers if racer is not loser]
        assert loser.join() == FAILED
        message, _ = loser.messages()
        assert f"is being trained by process {winner.process.pid} on " in message
        assert winner.pipe.recv() == "play"
        winner.kill()
        assert run.start(cycles=ENDLESS).kill_in(0, 0) != "the end"
    result = f"{RACES} times one trains, and the other names its process; once that is killed, the run resumes at once"
    figure(10, f"{RACES} races of two trainers", result)


def test_outcome_detects_a_stray_file(run: CrashRun, reference: Outcome) -> None:
    run.reset()
    run.finish()
    (run.home / "stray").write_text("left over")
    assert run.outcome() != reference


def listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count} in {name}" for name, count in counts.most_common())


def open_files_below(home: Path) -> list[str]:
    """The files in `home` that any process has open."""
    found = []
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            target = str(link.readlink())
        except OSError:
            continue
        if target.startswith(f"{home}/"):
            found.append(f"{link.parts[2]}: {target}")
    return found
