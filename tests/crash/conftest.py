import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Laboratory, Outcome, after_first_cycle, build, from_now_on


@pytest.fixture(scope="session")
def memory() -> Iterator[Path]:
    """A directory in memory, where there is one: what is killed is a process, and no disk needs to be waited for."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as directory:
        yield Path(directory)


@pytest.fixture(scope="session")
def laboratory(memory: Path) -> Laboratory:
    """A run before its first cycle."""
    return build(memory / "two-cycles")


@pytest.fixture(scope="session")
def reference(laboratory: Laboratory) -> Outcome:
    """What comes of it when nothing disturbs it."""
    laboratory.reset()
    return laboratory.finish()


@pytest.fixture(scope="session")
def one_cycle(memory: Path) -> Laboratory:
    """A run of one lane before its second and last cycle, whose every operation on files is tried."""
    return after_first_cycle(build(memory / "one-cycle", lanes=1))


@pytest.fixture(scope="session")
def one_cycle_reference(one_cycle: Laboratory) -> Outcome:
    one_cycle.reset()
    return one_cycle.finish()


@pytest.fixture(scope="session")
def operations(one_cycle: Laboratory) -> int:
    """How often that cycle changes files of the home."""
    count = one_cycle.phases()[2]
    assert count > 300, "more than a hundred are those of SQLite, as many those of 22 files"
    return count


@pytest.fixture(scope="session")
def evaluation(memory: Path) -> Laboratory:
    """A run of one lane that has done its one cycle and is evaluated then, and does nothing else."""
    laboratory = build(memory / "evaluation", lanes=1)
    laboratory.finish(cycles=1)
    return from_now_on(laboratory, "trained", cycles=1, evaluates=True)


@pytest.fixture(scope="session")
def evaluation_reference(evaluation: Laboratory) -> Outcome:
    evaluation.reset()
    return evaluation.finish()
