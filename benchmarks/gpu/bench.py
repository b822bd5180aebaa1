"""Speed of play, optimization and whole cycles on a GPU, and where the time goes. Parts:

cycle      whole cycles of the preset `fast` by the command `dqn train`
inference  Q-values of a batch of states, as the learner estimates them and as a CUDA graph
profile    kernels and calls of one batch and of one estimate, in profile.txt
play       play by numbers of lanes and groups, without storage
train      batches, compiled and not compiled, and as a CUDA graph
emulator   the emulators alone
bare       cycles without Prefect, MLflow and zarr, part by part
wide       as cycle, with 256 lanes

A part that fails prints one line.
"""

from __future__ import annotations

import queue
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu.common import (
    Results,
    parse_parts,
    parser,
    run_dqn,
    set_options,
    synchronize,
    use_home,
)
from benchmarks.report import machine
from benchmarks.speed import open_emulator
from dqn.config import TrainConfig, make_config
from dqn.envs.experience import Experience
from dqn.envs.histories import first_histories
from dqn.envs.lanes import Lanes, open_lanes
from dqn.envs.policy import CyclePolicy
from dqn.envs.rollout import play_cycle
from dqn.hardware import prepare, resolve
from dqn.learning.learner import Learner
from dqn.learning.optimization import train_on
from dqn.learning.replay import ReplayMemory
from dqn.learning.sweep import SweepRule, backward_sweep
from dqn.metrics import COUNTER_CYCLES, COUNTER_STATES, speed_metric

GAME, ACTIONS = "ALE/Breakout-v5", 4
SMALL = {"lanes": 4, "replay_states": 64, "batch_size": 16}  # of quick measurements
TASKS = ("collect-episodes", "update-q-values", "optimize")
WARM_CYCLES = 2
COMMAND_SECONDS = 200
LAST_SECONDS = 20  # no part starts so shortly before the end of --seconds

Estimate = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Bench:
    """The device that is measured, and the results."""

    device: str
    compiled: str
    quick: bool
    results: Results
    out: Path

    @property
    def cuda(self) -> bool:
        """Whether a GPU is measured."""
        return self.device == "cuda"

    def config(self, **overrides: Any) -> TrainConfig:
        """The preset `fast` on the device; in float32 and not compiled on the CPU."""
        fields: dict[str, Any] = {"device": self.device, "compiled": self.compiled, "game": GAME, **overrides}
        if not self.cuda:
            fields |= {"precision": "float32", "compiled": "no"}
        return resolve(make_config("fast", fields))

    def learner(self, config: TrainConfig) -> Learner:
        """A new learner on the device."""
        learner = Learner(config, ACTIONS, prepare(config))
        learner.set_learning_rate(1e-4)
        return learner

    def rate(self, call: Callable[[], object], items: int, seconds: float = 2.0) -> float:
        """Items per second of `call`, which processes `items`: the median of the calls of some seconds."""
        call()
        synchronize()
        times: list[float] = []
        end = perf_counter() + (0.3 if self.quick else seconds)
        while not times or perf_counter() < end:
            began = perf_counter()
            call()
            synchronize()
            times.append(perf_counter() - began)
        return items / statistics.median(times)


def random_states(count: int) -> np.ndarray:
    """Random states (N, 105, 80, 2) uint8."""
    return np.random.default_rng(0).integers(0, 256, (count, 105, 80, 2), np.uint8)


def random_batch(count: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """States, targets and actions of a batch, on the device."""
    states = torch.from_numpy(random_states(count)).to(device)
    return states, torch.rand(count, ACTIONS, device=device), torch.randint(0, ACTIONS, (count,), device=device)


def bench_cycle(bench: Bench) -> None:
    """Train with the preset `fast`."""
    bench_command(bench, "fast", [], 24)


def bench_wide(bench: Bench) -> None:
    """Train with four times as many lanes."""
    bench_command(bench, "256 lanes", ["lanes=256", "replay_states=16384", "batch_size=256"], 10)


def bench_command(bench: Bench, name: str, fields: list[str], cycles: int) -> None:
    """Measure the cycles of `dqn train` with `fields`; the first cycles are not counted."""
    from storage.runs import open_tracking

    cycles = 4 if bench.quick else cycles
    fields = [f"{field}={value}" for field, value in SMALL.items()] if bench.quick else fields
    fields = [*fields, f"device={bench.device}", f"compiled={bench.compiled if bench.cuda else 'no'}"]
    log = bench.out / f"{name.replace(' ', '-')}.log"
    log.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as home:
        began = perf_counter()
        run_dqn(Path(home), ["train", "--cycles", str(cycles), *set_options(fields)], log, COMMAND_SECONDS)
        bench.results.add("cycle", f"{name}, whole command, s", round(perf_counter() - began, 1))
        use_home(Path(home))
        tracking = open_tracking()
        (run,) = tracking.runs()
        points = {each: tracking.history(run.info.run_id, each) for each in (COUNTER_CYCLES, *map(speed_metric, TASKS))}
    seconds = (np.diff(sorted(point.timestamp for point in points[COUNTER_CYCLES])) / 1000).tolist()
    states = run.data.metrics[COUNTER_STATES] / cycles
    bench.results.add("cycle", f"{name}, states/s", states / statistics.median(seconds[WARM_CYCLES - 1 :]))
    bench.results.add("cycle", f"{name}, seconds of each cycle", seconds)
    for task in TASKS:
        speed = statistics.median(point.value for point in points[speed_metric(task)][WARM_CYCLES - 1 :])
        bench.results.add("cycle", f"{name}, {task}, states/s", float(speed))
        bench.results.add("cycle", f"{name}, {task}, seconds of a cycle", round(states / speed, 4))


def no_network(states: np.ndarray) -> np.ndarray:
    """Q-values (N, A) float32 that are zero."""
    return np.zeros((len(states), ACTIONS), np.float32)


class GraphedNetwork:
    """`Learner.estimate` for N states as a CUDA graph, with pinned memory on both sides and a stream of its own."""

    def __init__(self, learner: Learner, count: int) -> None:
        shape = (count, 105, 80, 2)
        self.pinned_states = torch.empty(shape, dtype=torch.uint8).pin_memory()
        self.states = torch.zeros(shape, dtype=torch.uint8, device=learner.device)
        self.stream, self.done = torch.cuda.Stream(), torch.cuda.Event()
        with torch.no_grad(), torch.cuda.stream(self.stream):
            for _ in range(3):
                learner.acting_network(self.states)
        torch.cuda.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.graph(self.graph, stream=self.stream):
            self.q_values = learner.acting_network(self.states)
        self.pinned_q_values = torch.empty(self.q_values.shape).pin_memory()

    def __call__(self, states: np.ndarray) -> np.ndarray:
        """Q-values (N, A) float32 of states (N, 105, 80, 2) uint8."""
        np.copyto(self.pinned_states.numpy(), states)
        with torch.cuda.stream(self.stream):
            self.states.copy_(self.pinned_states, non_blocking=True)
            self.graph.replay()
            self.pinned_q_values.copy_(self.q_values, non_blocking=True)
            self.done.record(self.stream)
        self.done.synchronize()
        return self.pinned_q_values.numpy().copy()


class GraphedNetworks:
    """A CUDA graph for each of several threads. A call uses a graph that no other thread uses."""

    def __init__(self, learner: Learner, count: int, threads: int) -> None:
        self.free: queue.SimpleQueue[GraphedNetwork] = queue.SimpleQueue()
        for _ in range(threads):
            self.free.put(GraphedNetwork(learner, count))

    def __call__(self, states: np.ndarray) -> np.ndarray:
        """As `GraphedNetwork`."""
        network = self.free.get()
        try:
            return network(states)
        finally:
            self.free.put(network)


def bench_inference(bench: Bench) -> None:
    """Time of an estimate in microseconds, with the copies to and from the device."""
    add, learner = bench.results.add, bench.learner(bench.config())
    for count in (16,) if bench.quick else (16, 32, 64, 128, 256):
        states, name = random_states(count), f"{count} states"
        add("inference", f"{name}, us", 1e6 / bench.rate(lambda states=states: learner.estimate(states), 1, 1))
        if not bench.cuda:
            continue
        with bench.results.attempt("inference", f"{name}, CUDA graph"):
            graphed = GraphedNetwork(learner, count)
            speed = bench.rate(lambda graphed=graphed, states=states: graphed(states), 1, 1)
            add("inference", f"{name}, CUDA graph, us", 1e6 / speed)
            same = bool(np.array_equal(graphed(states), learner.estimate(states)))
            add("inference", f"{name}, CUDA graph gives the same", same)
    on_device = torch.from_numpy(random_states(64)).to(learner.device)
    with torch.no_grad():
        speed = bench.rate(lambda: [learner.acting_network(on_device) for _ in range(20)], 20, 1)
    add("inference", "64 states, without copies, us", 1e6 / speed)


def bench_profile(bench: Bench) -> None:
    """Profile a batch and an estimate, and write the tables to profile.txt."""
    learner = bench.learner(bench.config())
    batch, states = random_batch(16 if bench.quick else 128, learner.device), random_states(64)
    tables = profile(bench, "batch", lambda: learner.train_batch(*batch))
    tables += profile(bench, "estimate", lambda: learner.estimate(states))
    (bench.out / "profile.txt").write_text("\n\n".join(tables) + "\n")


def profile(bench: Bench, name: str, call: Callable[[], object]) -> list[str]:
    """Tables of the kernels and the host's calls of ten calls of `call`."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled

    for _ in range(3):
        call()
    synchronize()
    with profiled(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if bench.cuda else [])]) as found:
        for _ in range(10):
            call()
        synchronize()
    averages = found.key_averages()
    if bench.cuda:
        kernels = [each for each in averages if each.device_type == torch.autograd.DeviceType.CUDA]
        bench.results.add("profile", f"{name}, kernels", sum(each.count for each in kernels) / 10)
        busy = sum(each.self_device_time_total for each in kernels) / 10
        bench.results.add("profile", f"{name}, GPU busy, us", busy)
    orders = ["self_cpu_time_total", *(["self_device_time_total"] if bench.cuda else [])]
    return [f"{name}, ten calls, by {order}\n{averages.table(sort_by=order, row_limit=30)}" for order in orders]


def bench_play(bench: Bench) -> None:
    """States per second of play, with and without a network."""
    for lanes, groups in ((4, 2),) if bench.quick else ((64, 4), (256, 4), (256, 16)):
        config = bench.config(lanes=lanes, lane_groups=groups)
        learner, opened = bench.learner(config), open_lanes(config, first_histories(lanes))
        name = f"{lanes} lanes in {groups} groups"
        try:
            play(bench, name, config, opened, learner.estimate)
            play(bench, f"{name}, no network", config, opened, no_network)
            if bench.cuda:
                with bench.results.attempt("play", f"{name}, CUDA graphs"):
                    networks = GraphedNetworks(learner, lanes // groups, groups)
                    play(bench, f"{name}, CUDA graphs", config, opened, networks)
        finally:
            for group in opened:
                group.close()


def play(bench: Bench, name: str, config: TrainConfig, opened: list[Lanes], estimate: Estimate) -> None:
    """Measure play with an estimate of Q-values; a first turn is not counted."""
    states = 2_000 if bench.quick else 24_000
    experience = Experience.empty(max(8, states // config.lanes), config.lanes, ACTIONS)
    policy = CyclePolicy.of(config, 1, 0)
    with bench.results.attempt("play", name):
        play_cycle(opened, estimate, experience, policy)
        began = perf_counter()
        play_cycle(opened, estimate, experience, policy)
        bench.results.add("play", f"{name}, states/s", experience.states_played / (perf_counter() - began))


def bench_train(bench: Bench) -> None:
    """States per second of batches by compilation and size."""
    sizes: dict[str, tuple[int, ...]] = {"no": (16,)} if bench.quick else {"no": (128, 512, 2048)}
    if bench.cuda and bench.compiled == "yes" and not bench.quick:
        sizes["yes"] = (128, 512)  # each is compiled for half a minute
    for compiled, counts in sizes.items():
        for count in counts:
            config = bench.config(compiled=compiled, batch_size=count)
            with bench.results.attempt("train", f"compiled={compiled}, batches of {count}"):
                train(bench, config)


def train(bench: Bench, config: TrainConfig) -> None:
    """Measure batches of a configuration, one after another and as a CUDA graph."""
    size, name = config.batch_size, f"compiled={config.compiled}, batches of {config.batch_size}"
    learner = bench.learner(config)
    batch = random_batch(size, learner.device)
    began = perf_counter()
    learner.train_batch(*batch)
    synchronize()
    bench.results.add("train", f"{name}, first batch, s", round(perf_counter() - began, 1))
    speed = bench.rate(lambda: [learner.train_batch(*batch) for _ in range(10)], 10 * size)
    add_training_speed(bench, name, speed, size)
    if bench.cuda:
        with bench.results.attempt("train", f"{name}, CUDA graph"):
            graph = graphed_step(learner, batch)
            speed = bench.rate(lambda: [graph.replay() for _ in range(10)], 10 * size)
            add_training_speed(bench, f"{name}, CUDA graph", speed, size)


def add_training_speed(bench: Bench, name: str, speed: float, size: int) -> None:
    """Record states per second, and milliseconds of a batch."""
    bench.results.add("train", f"{name}, states/s", speed)
    bench.results.add("train", f"{name}, ms for a batch", round(1e3 * size / speed, 3))


def graphed_step(learner: Learner, batch: tuple[Tensor, Tensor, Tensor]) -> torch.cuda.CUDAGraph:
    """An optimizer step on a batch as a CUDA graph. The learner has taken a step before."""
    learner.optimizer.param_groups[0]["capturable"] = True
    for state in learner.optimizer.state.values():
        state["step"] = state["step"].to(learner.device)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            learner.train_batch(*batch)
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        learner.train_batch(*batch)
    return graph


def bench_emulator(bench: Bench) -> None:
    """States per second of the emulators by numbers of games and threads."""
    for games, threads in ((8, 2),) if bench.quick else ((16, 1), (64, 8), (64, 16), (256, 16)):
        emulator = open_emulator(games, threads)
        actions = np.random.default_rng(0).integers(ACTIONS, size=(10, games))
        speed = bench.rate(lambda emulator=emulator, actions=actions: [*map(emulator.step, actions)], 10 * games)
        bench.results.add("emulator", f"{games} games, {threads} threads, states/s", speed)
        emulator.close()


def bench_bare(bench: Bench) -> None:
    """Milliseconds of the parts of a cycle without storage; the first cycles are not counted."""
    config = bench.config(**(SMALL if bench.quick else {}))
    groups, learner = open_lanes(config, first_histories(config.lanes)), bench.learner(config)
    try:
        cycles = range(1, 4 if bench.quick else 9)
        times = [bare_cycle(config, groups, learner, cycle) for cycle in cycles][WARM_CYCLES:]
    finally:
        for group in groups:
            group.close()
    medians = {part: statistics.median(each[part] for each in times) for part in times[0]}
    for part, seconds in medians.items():
        bench.results.add("bare", f"{part}, ms", round(1e3 * seconds, 1))
    states = config.cycle_steps(0) * config.lanes
    bench.results.add("bare", "states/s", states / sum(medians.values()))


def bare_cycle(config: TrainConfig, groups: list[Lanes], learner: Learner, cycle: int) -> dict[str, float]:
    """Seconds of each part of a cycle, the first of which is cycle 1."""
    steps = config.cycle_steps(0)
    states = (cycle - 1) * steps * config.lanes
    experience = Experience.empty(steps, config.lanes, ACTIONS)
    stamps = [perf_counter()]
    play_cycle(groups, learner.estimate, experience, CyclePolicy.of(config, cycle, states))
    stamps.append(perf_counter())
    memory = ReplayMemory.of(experience, backward_sweep(experience, SweepRule.of(config)))
    stamps.append(perf_counter())
    memory = memory.on(learner.device)
    synchronize()
    stamps.append(perf_counter())
    train_on(learner, memory, cycle, config.scheduled(states))
    stamps.append(perf_counter())
    parts = ("play", "sweep", "copy to the device", "optimize")
    return dict(zip(parts, np.diff(stamps).tolist(), strict=True))


PARTS: dict[str, Callable[[Bench], None]] = {
    "cycle": bench_cycle,
    "inference": bench_inference,
    "profile": bench_profile,
    "play": bench_play,
    "train": bench_train,
    "emulator": bench_emulator,
    "bare": bench_bare,
    "wide": bench_wide,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the parts, and return the exit status."""
    options = parser("bench", __doc__)
    options.add_argument("--compiled", choices=("yes", "no"), default="yes", help="whether the loss is compiled")
    options.add_argument("--quick", action="store_true", help="small measurements, which test the script itself")
    options.add_argument("--seconds", type=float, default=480, help="no part starts after this time: 480")
    given = parse_parts(options, PARTS, arguments)
    began, results = perf_counter(), Results(given.out / "bench.json")
    quick = given.quick or given.device == "cpu"
    bench = Bench(given.device, given.compiled, quick, results, given.out)
    results.add("machine", "machine", machine())
    for part in given.parts or PARTS:
        passed = perf_counter() - began
        if passed > given.seconds - LAST_SECONDS:
            results.add(part, "left out", f"{passed:.0f} of {given.seconds:.0f} s have passed")
            continue
        with results.attempt(part):
            PARTS[part](bench)
    return results.finish()


if __name__ == "__main__":
    sys.exit(main())
