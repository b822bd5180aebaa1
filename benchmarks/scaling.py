"""States per second of play with one and with two Dask workers of one core each: `python -m benchmarks.scaling`.

Trainings with one and with two workers alternate in one home, with a Prefect server and a Dask scheduler on the
loopback interface. The time of play is that from the start of a cycle's first shard to the commit of its last one,
according to their manifests, so it includes Prefect, Dask, zarr and fsync between shards. Other numbers that
docs/cluster-estimate.md uses are measured as well: the memory of Dask's processes, the time between two shards, and
the speed of reading.
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
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil

from benchmarks import report
from benchmarks.report import DOCS, Table
from flows.server.processes import answers, start_server, stop_server, wait_for_server
from storage.formats.experience import read_experiences

NAME = "scaling"
ROUNDS, CYCLES, WARM_CYCLES = 3, 6, 2
STATES, SHARDS = 8_192, 2
FIELDS = {"replay_states": STATES, "threads": 1, "lane_groups": 1, "max_epochs": 0.01, "keep_cycles": CYCLES}
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
    results = {"machine": report.machine(), "states a cycle": STATES, "shards": SHARDS, "memory": memory}
    results |= {"task seconds": tasks, "bytes read a CPU second": reading}
    results |= {f"{count} workers": found for count, found in speeds.items()}
    report.write_results(NAME, results)
    (table,) = tables(results)
    report.write([table])
    print("\n".join(table.lines))


def tables(results: dict[str, Any]) -> list[Table]:
    """The table of the page, from the raw results."""
    one, two = (statistics.median(results[f"{count} workers"]) for count in (1, 2))
    tasks, reading = statistics.median(results["task seconds"]), results["bytes read a CPU second"]
    rows = [
        ["play with one worker of one core", f"{one:,.0f} states/s", ""],
        ["play with two workers", f"{two:,.0f} states/s", f"{two / one:.2f} times; target: 1.7 times"],
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
                with workers(home, environment, scheduler, count, memory):
                    speeds[count] += play_speeds(home, environment, scheduler, f"{count}-{turn}")
                print(count, [round(speed) for speed in speeds[count]], flush=True)
    return speeds, memory


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
    home: Path, environment: dict[str, str], scheduler: str, count: int, memory: dict[str, float]
) -> Iterator[None]:
    """Start `count` Dask workers that play, each on a core of its own.

    Adds the memory of an idle worker and its nanny to `memory`.
    """
    from distributed import Client

    cores = sorted(os.sched_getaffinity(0))
    with ExitStack() as stack:
        for number in range(count):
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
            command += ["--nthreads", "1", "--resources", "collector=1", "--no-dashboard", "--memory-limit", "0"]
            process = start_server([*command, "--local-directory", str(home / "dask")], environment, log)
            stack.callback(stop_server, process)
        with Client(scheduler) as client:
            client.wait_for_workers(count, timeout=120)
        worker = psutil.Process(process.pid)
        family = (worker, *worker.children(recursive=True))
        memory.setdefault("worker and its nanny", sum(each.memory_info().rss for each in family))
        yield
    with Client(scheduler) as client:
        while client.scheduler_info()["workers"]:
            time.sleep(0.2)


def play_speeds(home: Path, environment: dict[str, str], scheduler: str, name: str) -> list[float]:
    """Train, and return the states per second of play in each cycle after the first WARM_CYCLES."""
    command = [*DQN, "train", "--cycles", str(CYCLES), "--shards", str(SHARDS), "--name", name]
    command += [option for field, value in FIELDS.items() for option in ("--set", f"{field}={value}")]
    before = set((home / "replay").glob("*"))
    cluster = {**environment, "DQN_CLUSTER": scheduler}
    subprocess.run(command, env=cluster, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    (run,) = set((home / "replay").glob("*")) - before
    return [cycle_speed(run, cycle) for cycle in range(WARM_CYCLES + 1, CYCLES + 1)]


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
