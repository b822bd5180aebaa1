import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import CrashRun, Outcome, build, snapshot, with_first_cycle


@pytest.fixture(scope="session")
def ram_directory() -> Iterator[Path]:
    """A directory on tmpfs where the machine has one: only processes are killed, so no test needs a real disk."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as directory:
        yield Path(directory)


@pytest.fixture(scope="session")
def run(ram_directory: Path) -> CrashRun:
    """A run before its first cycle."""
    return build(ram_directory / "two-cycles")


@pytest.fixture(scope="session")
def reference(run: CrashRun) -> Outcome:
    """The outcome of `run` without any fault."""
    run.reset()
    return run.finish()


@pytest.fixture(scope="session")
def one_cycle_run(ram_directory: Path) -> CrashRun:
    """A run of one lane before its second and last cycle; the tests can fault every file operation of that cycle."""
    return with_first_cycle(build(ram_directory / "one-cycle", lanes=1))


@pytest.fixture(scope="session")
def one_cycle_reference(one_cycle_run: CrashRun) -> Outcome:
    """The outcome of `one_cycle_run` without any fault."""
    one_cycle_run.reset()
    return one_cycle_run.finish()


@pytest.fixture(scope="session")
def operation_count(one_cycle_run: CrashRun) -> int:
    """Number of operations that change files of the home during the cycle of `one_cycle_run`."""
    count = one_cycle_run.phases()[2]
    assert count > 300  # SQLite makes more than a hundred, and the 22 files of units as many
    return count


@pytest.fixture(scope="session")
def evaluation_run(ram_directory: Path) -> CrashRun:
    """A run of one lane whose one cycle is complete, so that only its evaluation is left."""
    run = build(ram_directory / "evaluation", lanes=1)
    run.finish(cycles=1)
    return snapshot(run, "trained", cycles=1, evaluates=True)


@pytest.fixture(scope="session")
def evaluation_reference(evaluation_run: CrashRun) -> Outcome:
    """The outcome of `evaluation_run` without any fault."""
    evaluation_run.reset()
    return evaluation_run.finish()
