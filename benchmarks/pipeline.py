"""Time and memory of whole trainings: runs the command `dqn`, each time in a new home."""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import psutil
from mlflow.tracking import MlflowClient

from benchmarks.report import Row
from dqn.config import TrainConfig, make_config
from dqn.cycle import train
from dqn.envs.experience import Experience
from dqn.hardware import resolve
from dqn.metrics import COUNTER_CYCLES

DQN = [sys.executable, "-c", "from flows.cli import main; main()"]
CYCLES = 20
EARLY, LATE = (10, 60), (950, 1_000)  # cycles to compare
LARGE_STATES, SMALL_STATES = 200_000, 20_000


@contextmanager
def training(*options: str) -> Iterator[tuple[psutil.Process, Path]]:
    """Start `dqn train` in a new home; waits for its end when the block ends.

    Raises:
        RuntimeError: the training failed.
    """
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "DQN_HOME": home}
        command = [*DQN, "train", *options]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        yield psutil.Process(process.pid), Path(home)
        _, error = process.communicate()
        if process.returncode:
            raise RuntimeError(f"dqn train {' '.join(options)} failed: {error.decode()}")


def settings(*fields: str) -> list[str]:
    """The options of `dqn train` that set fields of the configuration."""
    return [option for field in fields for option in ("--set", field)]


def wait(process: psutil.Process) -> None:
    """Wait for the end of a child, but leave its exit status for the parent to collect."""
    while process.status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.2)


def cycle_seconds(home: Path) -> list[float]:
    """Seconds from the checkpoint of each cycle to the next one."""
    client = MlflowClient(tracking_uri=f"sqlite:///{home / 'mlflow.db'}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    (run,) = client.search_runs(experiments)
    times = sorted(point.timestamp for point in client.get_metric_history(run.info.run_id, COUNTER_CYCLES))
    return [float(seconds) for seconds in np.diff(times) / 1000]


def bare_cycle_seconds(config: TrainConfig, cycles: int) -> list[float]:
    """Seconds of each cycle of `dqn.cycle.train`, without storage, logging and orchestration."""
    times = [perf_counter(), *(perf_counter() for _ in train(config, cycles))]
    return [float(seconds) for seconds in np.diff(times)]


def bench_cycle() -> dict[str, float]:
    """Median seconds of a cycle of `fast` in a training and in a bare loop, and seconds until the first frame."""
    began = perf_counter()
    with training("--cycles", str(CYCLES)) as (process, home):
        while not list(home.glob("staging/*/experience-*")):
            time.sleep(0.02)
        first_frame = perf_counter() - began
        wait(process)
        whole = cycle_seconds(home)
    bare = bare_cycle_seconds(resolve(make_config()), CYCLES)
    return {
        "first frame": first_frame,
        "training": statistics.median(whole[2:]),
        "bare loop": statistics.median(bare[2:]),
    }


def bench_memory(states: int) -> dict[str, float]:
    """Peak memory of all processes in bytes, and seconds per state, with `states` states in replay memory."""
    fields = [f"replay_states={states}", "max_epochs=0.2"]
    peak = 0
    with training("--cycles", "2", *settings(*fields)) as (process, home):
        while process.status() != psutil.STATUS_ZOMBIE:
            peak = max(peak, _memory(process))
            time.sleep(0.25)
        (seconds,) = cycle_seconds(home)[-1:]
    return {"bytes": peak, "seconds": seconds / states}


def bench_growth() -> dict[str, float]:
    """Median seconds of early and late cycles of a long training with fake play and real storage."""
    with tempfile.TemporaryDirectory() as home:
        command = [sys.executable, "-m", "benchmarks.growth", str(LATE[1])]
        environment = {**os.environ, "DQN_HOME": home, "DQN_FLOW_RUN_CYCLES": str(LATE[1])}
        subprocess.run(command, env=environment, check=True, capture_output=True)
        seconds = cycle_seconds(Path(home))
    return {"early": statistics.median(seconds[slice(*EARLY)]), "late": statistics.median(seconds[slice(*LATE)])}


def _memory(process: psutil.Process) -> int:
    """Proportional set size in bytes of a process and its descendants, so that shared pages count once."""
    total = 0
    for each in (process, *process.children(recursive=True)):
        with suppress(psutil.Error):
            total += each.memory_full_info().pss
    return total


def bench_help() -> float:
    """Seconds of `dqn --help`, the fastest of five."""
    seconds = []
    for _ in range(5):
        began = perf_counter()
        subprocess.run([*DQN, "--help"], check=True, stdout=subprocess.DEVNULL)
        seconds.append(perf_counter() - began)
    return min(seconds)


COMMANDS = {  # the target of each command in seconds
    "dqn runs": 3,
    "dqn verify latest": 3,
    "dqn export latest -o {out}/agent": 3,
    "dqn record latest --epsilon 1 --seconds 23.4 -o {out}/episode.mp4": 10,  # at most 351 steps
    "dqn inspect latest": 15,
}


def bench_commands(home: Path) -> dict[str, float]:
    """Processor seconds of commands on the latest run of a home."""
    environment, seconds = {**os.environ, "DQN_HOME": str(home)}, {}
    with tempfile.TemporaryDirectory() as out:
        for command in COMMANDS:
            before = _children_seconds()
            arguments = command.format(out=out).split()[1:]
            subprocess.run([*DQN, *arguments], env=environment, check=True, capture_output=True)
            seconds[command] = _children_seconds() - before
    return seconds


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(results: dict[str, Any]) -> None:
    """Measure trainings, and store the results in `results`."""
    results["cycle"] = bench_cycle()
    large, small = (bench_memory(states) for states in (LARGE_STATES, SMALL_STATES))
    results["memory"] = {"large": large, "small": small}
    results["growth"] = bench_growth()
    with training("--cycles", "2") as (process, home):
        wait(process)
        results["command seconds"] = bench_commands(home)
    results["help seconds"] = bench_help()


def rows(results: dict[str, Any]) -> Iterator[Row]:
    """A row for each of the results."""
    cycle, memory, growth = results["cycle"], results["memory"], results["growth"]
    share = 1 - cycle["bare loop"] / cycle["training"]
    yield Row(
        "Prefect, zarr, MLflow, manifests and fsync in a cycle of 4,096 states",
        f"{share:.0%} of {cycle['training']:.2f} s",
        f"the same calls in a bare loop: {cycle['bare loop']:.2f} s",
        "5 %",
    )
    yield Row("`dqn train`, time until the first frame", f"{cycle['first frame']:.1f} s", "", "15 s")
    states_bytes = Experience.empty(1, 1, 4).states.nbytes * LARGE_STATES
    yield Row(
        f"memory with {LARGE_STATES:,} states, all processes",
        f"{memory['large']['bytes'] / 1e9:.1f} GB",
        f"replay memory of {states_bytes / 1e9:.1f} GB",
        f"{(1.3 * states_bytes + 2.5e9) / 1e9:.1f} GB",
    )
    yield Row(
        f"seconds per state, {LARGE_STATES:,} states in replay memory",
        f"{memory['large']['seconds'] / memory['small']['seconds'] - 1:+.0%}",
        f"{SMALL_STATES:,} states",
        "10 %",
    )
    yield Row(
        f"seconds of a cycle, cycles {LATE[0]} to {LATE[1]}, fake play",
        f"{growth['late'] / growth['early'] - 1:+.0%}",
        f"cycles {EARLY[0]} to {EARLY[1]}: {growth['early']:.3f} s",
        "10 %",
    )
    for command, used in results.get("command seconds", {}).items():
        yield Row(f"`{command.replace('{out}/', '')}`, processor time", f"{used:.1f} s", "", f"{COMMANDS[command]} s")
    yield Row("`dqn --help`", f"{results['help seconds']:.2f} s", "", "0.5 s")
