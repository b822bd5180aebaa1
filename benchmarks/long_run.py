"""Growth of the databases of Prefect and MLflow, the log and the memory in a training of thousands of cycles.

    python -m benchmarks.long_run [cycles]

Play, sweep and optimization are fake. The flow, its tasks, reports and flow runs, the commits of checkpoints and
MLflow are real. It writes `benchmarks/results/long_run.json` and a table in `docs/prefect-server.md`.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.report import Table

NAME = "long_run"
CYCLES, SAMPLE_CYCLES = 3_000, 500
STATES = 1_024  # of a cycle
METRICS = 45  # of a cycle, about as many as a real one has
COLUMNS = ["cycles", "flow runs", "Prefect MB", "MLflow MB", "trainer MB", "server MB"]  # of the table in the page
FIELDS = {"lanes": 1, "replay_states": 1, "batch_size": 1, "threads": 1, "network": "small"}


def main() -> None:
    """Run the training and write its results."""
    cycles = int(sys.argv[1]) if len(sys.argv) > 1 else CYCLES
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        os.environ |= {
            "DQN_HOME": str(home),
            "DQN_FLOW_RUN_CYCLES": "1000",
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{home / 'prefect.db'}",
            "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "90",
            "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
        }
        os.environ.pop("PREFECT_API_URL", None)
        samples = measure(home, cycles)
    from benchmarks import report  # imports torch, which the settings above must precede

    results = {"machine": report.machine(), "cycles": cycles, "samples": samples}
    report.write_results(NAME, results)
    (table,) = tables(results)
    report.write([table])
    print("\n".join(table.lines))


def tables(results: dict[str, Any]) -> list[Table]:
    """The table of the page, from the raw results."""
    from benchmarks.report import DOCS, Table

    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    lines += [f"| {' | '.join(f'{sample[column]:,.0f}' for column in COLUMNS)} |" for sample in results["samples"]]
    return [Table(DOCS / "prefect-server.md", "python -m benchmarks.long_run", results["machine"], lines)]


def measure(home: Path, cycles: int) -> list[dict[str, float]]:
    """Train with fake tasks, and return a sample for each SAMPLE_CYCLES cycles."""
    import psutil

    import flows.train
    from flows.server.embedded import start_embedded_prefect_server

    started, samples = time.monotonic(), []
    start_embedded_prefect_server()
    trainer = psutil.Process()

    def sample(cycle: int) -> None:
        if cycle in (1, cycles) or cycle % SAMPLE_CYCLES == 0:
            servers = [child for child in trainer.children() if "uvicorn" in child.cmdline()]
            samples.append(
                {
                    "cycles": cycle,
                    "flow runs": rows(home, "flow_run"),
                    "Prefect MB": size(home, "prefect.db"),
                    "lines of log": rows(home, "log"),
                    "MLflow MB": size(home, "mlflow.db"),
                    "trainer MB": trainer.memory_info().rss / 1e6,
                    "server MB": servers[0].memory_info().rss / 1e6,
                    "seconds": time.monotonic() - started,
                }
            )
            print(samples[-1], flush=True)

    flows.train.collect_episodes, flows.train.update_q_values, flows.train.optimize = fakes(sample)
    flows.train.train_to_the_end(cycles=cycles, name="long", overrides=FIELDS)
    return samples


def fakes(sample: Any) -> tuple[Any, Any, Any]:
    """The three tasks without their work; `optimize` commits a checkpoint and then calls `sample` with the cycle."""
    from prefect import task
    from prefect.cache_policies import NO_CACHE

    from storage.units.unit import EXPERIENCE, TARGETS
    from tasks.unit_reference import UnitReference

    @task(name="collect-episodes", task_run_name="collect-episodes-{checkpoint.next_cycle:05d}", cache_policy=NO_CACHE)
    def collect_episodes(run_id: str, checkpoint: UnitReference, shard: int, since: Any) -> UnitReference:
        return UnitReference(EXPERIENCE, checkpoint.next_cycle, "", {})

    @task(name="update-q-values", task_run_name="update-q-values-{experience.cycle:05d}", cache_policy=NO_CACHE)
    def update_q_values(run_id: str, experience: UnitReference) -> UnitReference:
        return UnitReference(TARGETS, experience.cycle, "", {})

    @task(name="optimize", task_run_name="optimize-{checkpoint.next_cycle:05d}", cache_policy=NO_CACHE)
    def optimize(run_id: str, checkpoint: UnitReference, experience: Any, targets: Any) -> UnitReference:
        reference = commit_checkpoint(run_id, checkpoint)
        sample(reference.cycle)
        return reference

    return collect_episodes, update_q_values, optimize


def commit_checkpoint(run_id: str, checkpoint: Any) -> Any:
    """Commit a copy of a checkpoint as that of the next cycle, with METRICS metrics, and return its reference."""
    from dqn.metrics import (
        COUNTER_CYCLES,
        COUNTER_EPISODES,
        COUNTER_STATES,
        ESTIMATION_ERROR_MEAN,
        LOSS_MEAN,
        OPTIMIZATION_EPOCHS,
        Q_VALUES_AFTER_MEAN,
        Q_VALUES_BEFORE_MEAN,
        SCHEDULE_EPSILON,
        SCORE_MEAN_100,
        Metric,
    )
    from storage.formats.checkpoint import write_checkpoint
    from storage.runs import open_run
    from storage.units.unit import CHECKPOINT
    from tasks.unit_reference import UnitReference, made_by

    run, cycle = open_run(run_id), checkpoint.next_cycle
    before = run.checkpoint(checkpoint.open(run))
    states = cycle * STATES
    counters = replace(before.metadata.counters, cycle=cycle, states=states)
    with run.commit(CHECKPOINT, cycle, {}, made_by()) as draft:
        names = [SCHEDULE_EPSILON, Q_VALUES_BEFORE_MEAN, Q_VALUES_AFTER_MEAN, ESTIMATION_ERROR_MEAN]
        names += [LOSS_MEAN, OPTIMIZATION_EPOCHS, SCORE_MEAN_100, COUNTER_EPISODES]
        names += [f"other/{number}" for number in range(METRICS - len(names) - 2)]
        draft.metrics += [Metric(name, states, 1 / cycle) for name in names]
        draft.metrics += [Metric(COUNTER_STATES, states, states), Metric(COUNTER_CYCLES, states, cycle)]
        write_checkpoint(draft.directory, replace(before, metadata=replace(before.metadata, counters=counters)))
    return UnitReference.of(draft.unit)


def size(home: Path, database: str) -> float:
    """Megabytes of an SQLite database, including its write-ahead log."""
    return sum(path.stat().st_size for path in home.glob(f"{database}*")) / 1e6


def rows(home: Path, table: str) -> int:
    """Number of rows of a table of Prefect's database."""
    import contextlib
    import sqlite3

    with contextlib.closing(sqlite3.connect(home / "prefect.db")) as database:
        return int(database.execute(f"select count(*) from {table}").fetchone()[0])


if __name__ == "__main__":
    main()
