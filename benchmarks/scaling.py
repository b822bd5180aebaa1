"""States per second on Dask workers of one core each: `python -m benchmarks.scaling`.

1. Play with one and with two collectors. The time of play is that from the start of a cycle's first shard to the commit
   of its last one, according to their manifests, so it includes Prefect, Dask, zarr and fsync between shards.
2. Whole cycles with one collector and one optimizer, with and without overlap. The time is that between checkpoints.

Trainings alternate in one home, with a Prefect server and a Dask scheduler on the loopback interface. Other numbers
that docs/cluster-estimate.md uses are measured as well: the memory of Dask's processes, the time between two shards,
and the speed of reading.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil

from benchmarks import report
from benchmarks.report import DOCS, Table
from dqn.config import make_config
from flows.server.processes import answers, start_server, stop_server, wait_for_server
from storage.formats.experience import read_experiences

NAME = "scaling"
ROUNDS, CYCLES, WARM_CYCLES = 3, 6, 2
STATES, SHARDS = 8_192, 2
FIELDS = {"replay_states": STATES, "threads": 1, "lane_groups": 1, "max_epochs": 0.01, "keep_cycles": CYCLES}
OVERLAP_CYCLES = 8
OVERLAP_FIELDS = {"threads": 1, "keep_cycles": OVERLAP_CYCLES}
DQN = [sys.executable, "-m", "flows.cli"]


def main() -> None:
    """Run the trainings and write the results."""
    with tempfile.TemporaryDirectory() as home:
        environment = {
            **os.environ,
            "DQN_HOME": home,
            "PREFECT_HOME": home,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        }
        speeds, memory = measure(Path(home), environment)
        tasks = [each for run in (Path(home) / "replay").glob("*") for each in task_seconds(run)]
        reading = read_speed(next((Path(home) / "replay").glob("*")))
    with tempfile.TemporaryDirectory() as home:
        overlap = measure_overlap(Path(home), environment | {"DQN_HOME": home, "PREFECT_HOME": home})
    results = {"machine": report.machine(), "states a cycle": STATES, "shards": SHARDS, "memory": memory}
    results |= {"task seconds": tasks, "bytes read a CPU second": reading}
    results |= {f"{count} workers": found for count, found in speeds.items()}
    results |= {f"overlap={overlap}": found for overlap, found in overlap.items()}
    report.write_results(NAME, results)
    (table,) = tables(results)
    report.write([table])
    print("\n".join(table.lines))


def tables(results: dict[str, Any]) -> list[Table]:
    """The table of the page, from the raw results."""
    one, two = (statistics.median(results[f"{count} workers"]) for count in (1, 2))
    alternating, overlapping = (statistics.median(results[f"overlap={overlap}"]) for overlap in ("no", "yes"))
    tasks, reading = statistics.median(results["task seconds"]), results["bytes read a CPU second"]
    rows = [
        ["play with one worker of one core", f"{one:,.0f} states/s", ""],
        ["play with two workers", f"{two:,.0f} states/s", f"{two / one:.2f} times; target: 1.7 times"],
        ["a cycle with one collector and one optimizer, `overlap=no`", f"{alternating:,.0f} states/s", ""],
        [
            "the same with `overlap=yes`",
            f"{overlapping:,.0f} states/s",
            f"{overlapping / alternating:.2f} times; target: 1.7 times",
        ],
        ["from the end of a shard to the start of the next on a worker", f"{tasks:.3f} s", ""],
        ["states read from zarr", f"{reading / 1e9:.2f} GB per second of one core", ""],
        *([f"memory of an idle {name}", f"{size / 1e6:.0f} MB", ""] for name, size in results["memory"].items()),
    ]
    lines = ["| measurement | result | comparison |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]
    return [Table(DOCS / "scaling.md", "python -m benchmarks.scaling", results["machine"], lines)]


def measure(home: Path, environment: dict[str, str]) -> tuple[dict[int, list[float]], dict[str, float]]:
    """States per second of play in each cycle by number of workers, and the memory of Dask's processes in bytes."""
    speeds: dict[int, list[float]] = {1: [], 2: []}
    with servers(home, environment) as (scheduler, memory):
        for turn in range(ROUNDS):
            for count in speeds:
                with workers(home, environment, scheduler, ["collector"] * count, memory):
                    speeds[count] += play_speeds(home, environment, scheduler, f"{count}-{turn}")
                print(count, [round(speed) for speed in speeds[count]], flush=True)
    return speeds, memory


def measure_overlap(home: Path, environment: dict[str, str]) -> dict[str, list[float]]:
    """States per second of whole cycles, one number for each training, by `overlap`."""
    speeds: dict[str, list[float]] = {"no": [], "yes": []}
    with servers(home, environment) as (scheduler, memory):
        for turn in range(ROUNDS):
            for overlap in speeds:
                fields = {**OVERLAP_FIELDS, "overlap": overlap}
                with workers(home, environment, scheduler, ["collector", "optimizer"], memory):
                    train(environment, scheduler, f"{overlap}-{turn}", OVERLAP_CYCLES, fields)
                speeds[overlap].append(whole_speed(home))
                print(f"overlap={overlap}", [round(speed) for speed in speeds[overlap]], flush=True)
    return speeds


def whole_speed(home: Path) -> float:
    """States per second of the newest training, from the checkpoint of cycle WARM_CYCLES to the last one."""
    directory = max(home.glob("artifacts/*/*/artifacts/checkpoints"), key=lambda path: path.stat().st_mtime)
    times = [
        json.loads((directory / f"{cycle:05d}" / "manifest.json").read_text())["made"]["created_ms"] / 1000
        for cycle in (WARM_CYCLES, OVERLAP_CYCLES)
    ]
    states = (OVERLAP_CYCLES - WARM_CYCLES) * make_config("fast").replay_states
    return states / (times[1] - times[0])


@contextmanager
def servers(home: Path, environment: dict[str, str]) -> Iterator[tuple[str, dict[str, float]]]:
    """Start a Prefect server, which `environment` then names, and a Dask scheduler.

    Yields the address of the scheduler, and its memory in bytes.
    """
    prefect, dask = free_port(), free_port()
    environment["PREFECT_API_URL"] = f"http://127.0.0.1:{prefect}/api"
    with ExitStack() as stack:
        server = ["prefect", "server", "start", "--port", str(prefect)]
        scheduler = ["dask", "scheduler", "--host", "127.0.0.1", "--port", str(dask), "--no-dashboard"]
        for command in (server, scheduler):
            log = stack.enter_context((home / f"{command[0]}.log").open("w+b"))
            process = start_server([sys.executable, "-m", *command], environment, log)
            stack.callback(stop_server, process)
        wait_for_server(lambda: answers(f"http://127.0.0.1:{prefect}/api/health"), "the Prefect server", process, log)
        yield f"tcp://127.0.0.1:{dask}", {"scheduler": psutil.Process(process.pid).memory_info().rss}


@contextmanager
def workers(
    home: Path, environment: dict[str, str], scheduler: str, resources: Sequence[str], memory: dict[str, float]
) -> Iterator[None]:
    """Start a Dask worker for each of `resources`, on a core of its own.

    Adds the memory of an idle worker and its nanny to `memory`.
    """
    from distributed import Client

    cores = sorted(os.sched_getaffinity(0))
    with ExitStack() as stack:
        for number, resource in enumerate(resources):
            log = stack.enter_context((home / f"worker-{number}.log").open("w+b"))
            command = [
                "taskset",
                "-c",
                str(cores[number % len(cores)]),
                sys.executable,
                "-m",
                "dask",
                "worker",
                scheduler,
            ]
            command += ["--nthreads", "1", "--resources", f"{resource}=1", "--no-dashboard", "--memory-limit", "0"]
            process = start_server([*command, "--local-directory", str(home / "dask")], environment, log)
            stack.callback(stop_server, process)
        with Client(scheduler) as client:
            client.wait_for_workers(len(resources), timeout=120)
        worker = psutil.Process(process.pid)
        family = (worker, *worker.children(recursive=True))
        memory.setdefault("worker and its nanny", sum(each.memory_info().rss for each in family))
        yield
    with Client(scheduler) as client:
        while client.scheduler_info()["workers"]:
            time.sleep(0.2)


def play_speeds(home: Path, environment: dict[str, str], scheduler: str, name: str) -> list[float]:
    """Train, and return the states per second of play in each cycle after the first WARM_CYCLES."""
    before = set((home / "replay").glob("*"))
    train(environment, scheduler, name, CYCLES, FIELDS, "--shards", str(SHARDS))
    (run,) = set((home / "replay").glob("*")) - before
    return [cycle_speed(run, cycle) for cycle in range(WARM_CYCLES + 1, CYCLES + 1)]


def train(
    environment: dict[str, str], scheduler: str, name: str, cycles: int, fields: dict[str, Any], *options: str
) -> None:
    """Train on the cluster."""
    command = [*DQN, "train", "--cycles", str(cycles), "--name", name, *options]
    command += [option for field, value in fields.items() for option in ("--set", f"{field}={value}")]
    cluster = {**environment, "DQN_CLUSTER": scheduler}
    subprocess.run(command, env=cluster, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def cycle_speed(run: Path, cycle: int) -> float:
    """States per second from the start of the first shard of a cycle to the commit of the last one."""
    begins, ends = zip(*spans(run, cycle), strict=True)
    return STATES / (max(ends) - min(begins))


def spans(run: Path, cycle: int) -> list[tuple[float, float]]:
    """For each shard of a cycle, the start of its play and its commit, in seconds since 1970."""
    found = []
    for shard in range(SHARDS):
        path = run / f"experience-{shard}" / f"{cycle:05d}" / "manifest.json"
        made: dict[str, Any] = json.loads(path.read_text())["made"]
        end = made["created_ms"] / 1000
        found.append((end - STATES / SHARDS / made["speed"]["collect-episodes"], end))
    return found


def task_seconds(run: Path) -> list[float]:
    """Seconds that Dask and Prefect take from the commit of a shard to the start of the next one on its worker."""
    found = []
    for cycle in range(WARM_CYCLES + 1, CYCLES + 1):
        first, second = sorted(spans(run, cycle))
        if second[0] > first[1]:
            found.append(second[0] - first[1])
    return found


def read_speed(run: Path) -> float:
    """Bytes of states read per second of processor time, the fastest of five."""
    shards = [run / f"experience-{shard}" / f"{CYCLES:05d}" for shard in range(SHARDS)]
    best = 0.0
    for _ in range(5):
        began = time.process_time()
        size = read_experiences([shards]).states.nbytes
        best = max(best, size / (time.process_time() - began))
    return best


def free_port() -> int:
    """A port of the loopback interface that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
