"""Whether this project works on a GPU. Parts:

machine    versions of Python, torch, CUDA and the other packages
learner    training, compiled and not compiled; whether two trainings give the same bits; what makes the host wait
processes  an optimizer process, which uses NCCL, against the same training without it
resume     a run that was resumed in a new process, with empty caches of the compilers, against an uninterrupted run
tests      the tests of the package dqn, among them those that need a GPU

A part that fails prints one line; the exit status is then 1.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

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
from benchmarks.report import HERE, machine
from dqn.config import TrainConfig, make_config
from dqn.hardware import prepare, resolve
from dqn.learning.data_parallel import Processes
from dqn.learning.learner import Learner
from dqn.learning.optimization import train_on
from dqn.learning.replay import ReplayMemory

ACTIONS = 4
PACKAGES = ("torch", "triton", "numpy", "numba", "gymnasium", "ale-py", "zarr", "mlflow", "prefect", "pydantic")
SMALL = {"lanes": 4, "replay_states": 64, "batch_size": 16, "network": "small"}  # on a CPU
CYCLES = 6
RESUME_SECONDS, TEST_SECONDS = 280, 600


class Training(NamedTuple):
    """The result of a short training on fixed data."""

    config: TrainConfig
    losses: np.ndarray  # (batches,) float32
    weights: dict[str, Tensor]

    def __str__(self) -> str:
        config, losses = self.config, self.losses
        settings = f"{config.network}, {config.precision}, compiled={config.compiled}"
        return f"{settings}, losses from {losses[0]:.4f} to {losses[-1]:.4f}"


@dataclass(frozen=True)
class Check:
    """The device that is checked, and the results."""

    device: str
    results: Results
    out: Path

    def config(self, **overrides: Any) -> TrainConfig:
        """The preset `fast` on the device; a small version on the CPU."""
        small = {**SMALL, "precision": "float32"} if self.device == "cpu" else {}
        return resolve(make_config("fast", {"device": self.device, **small, **overrides}))

    def memory(self, states: int) -> ReplayMemory:
        """A replay memory of random states."""
        draws = np.random.default_rng(0)
        return ReplayMemory(
            torch.from_numpy(draws.integers(0, 256, (states, 105, 80, 2), np.uint8)),
            torch.from_numpy(draws.normal(size=(states, ACTIONS)).astype(np.float32)),
            torch.from_numpy(draws.integers(ACTIONS, size=states)),
            draws.random(states).astype(np.float32),
        )

    def train(self, **overrides: Any) -> Training:
        """Train a new learner for two epochs of 8 batches."""
        config = self.config(**overrides)
        learner = Learner(config, ACTIONS, prepare(config))
        memory = self.memory(8 * config.batch_size)
        result = train_on(learner, memory, 1, {**config.scheduled(0), "max_epochs": 2.0})
        return Training(config, result.losses, learner.state_dict().weights)

    def run(self, part: str, name: str, call: Callable[[], object]) -> None:
        """Record what `call` returns, its seconds and its warnings."""
        with self.results.attempt(part, name):
            began = time.perf_counter()
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                result = call()
                synchronize()
            self.results.add(part, name, f"{result} ({time.perf_counter() - began:.1f} s)")
            texts = {(str(warning.message).splitlines() or [""])[0][:150] for warning in caught}
            for number, text in enumerate(sorted(texts), 1):
                self.results.add(part, f"{name}, warning {number}", text)


def check_machine(check: Check) -> None:
    """Record the machine and the versions of the packages."""
    check.results.add("machine", "machine", machine())
    check.results.add("machine", "Python", sys.version.split()[0])
    for name in PACKAGES:
        try:
            check.results.add("machine", name, metadata.version(name))
        except metadata.PackageNotFoundError:
            check.results.add("machine", name, "not installed")
    if check.device == "cuda":
        check.results.add("machine", "CUDA of torch", torch.version.cuda)
        check.results.add("machine", "cuDNN", torch.backends.cudnn.version())
        check.results.add("machine", "GPU memory, bytes", torch.cuda.get_device_properties(0).total_memory)


def check_learner(check: Check) -> None:
    """Train on fixed data in several configurations, each once or twice."""
    run, cuda = partial(check.run, "learner"), check.device == "cuda"
    run("not compiled", lambda: check.train(compiled="no"))
    run("twice, not compiled", lambda: train_twice(check, compiled="no"))
    run("twice, adam, not compiled", lambda: train_twice(check, compiled="no", optimizer="adam"))
    if not cuda:
        return
    run("compiled", lambda: check.train(compiled="yes"))
    run("twice, compiled", lambda: train_twice(check, compiled="yes"))
    run("float32, not compiled", lambda: check.train(compiled="no", precision="float32"))
    run("nature, compiled", lambda: check.train(compiled="yes", network="nature"))
    run("host waits, not compiled", lambda: find_waits(check, compiled="no"))
    run("host waits, compiled", lambda: find_waits(check, compiled="yes"))
    run("operations that torch calls nondeterministic", lambda: train_with_alerts(check))


def train_twice(check: Check, **overrides: Any) -> str:
    """Train two learners in the same way.

    Raises:
        RuntimeError: their losses or weights differ.
    """
    first, second = check.train(**overrides), check.train(**overrides)
    if different := np.flatnonzero(first.losses != second.losses).tolist():
        raise RuntimeError(f"the losses differ from batch {different[0]} on")
    for name, weight in first.weights.items():
        if not torch.equal(weight, second.weights[name]):
            raise RuntimeError(f"the losses are the same, but the weights {name} differ")
    return "the same bits"


def find_waits(check: Check, **overrides: Any) -> str:
    """Train some batches while torch reports every operation that makes the host wait for the GPU.

    Raises:
        RuntimeError: there are such operations; the message names their lines.
    """
    config = check.config(**overrides)
    device = prepare(config)
    learner = Learner(config, ACTIONS, device)
    learner.set_learning_rate(1e-4)
    memory, chosen = check.memory(1024).on(device), np.arange(config.batch_size)
    for _ in range(3):
        learner.train_batch(*memory.batch(chosen, device))
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(3):
                learner.train_batch(*memory.batch(chosen, device))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [each for each in caught if "called a synchronizing" in str(each.message)]
    if waits:
        lines = sorted({f"{Path(each.filename).name}:{each.lineno}" for each in waits})
        raise RuntimeError(f"the host waits for the GPU at {', '.join(lines)}")
    return "nothing waits"


def train_with_alerts(check: Check) -> Training:
    """Train while torch warns of each operation that is not deterministic."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        return check.train(compiled="no")
    finally:
        torch.use_deterministic_algorithms(False)


def check_processes(check: Check) -> None:
    """Compare an optimization run in one optimizer process with one in this process."""
    check.run("processes", "NCCL" if check.device == "cuda" else "Gloo", lambda: train_in_process(check))


def train_in_process(check: Check) -> str:
    """Train in one optimizer process, and return by how much its losses differ from those of this process."""
    config = check.config(compiled="no")
    learner, processes = Learner(config, ACTIONS, prepare(config)), Processes(config, ACTIONS)
    memory = check.memory(8 * config.batch_size)
    try:
        losses = processes.train_on(learner, memory, 1, {**config.scheduled(0), "max_epochs": 2.0}).losses
    finally:
        processes.close()
    difference = np.abs(losses - check.train(compiled="no").losses).max()
    return f"{len(losses)} batches, largest difference of a loss {difference:.2e}"


def check_resume(check: Check) -> None:
    """Compare a resumed run with an uninterrupted one, compiled and not compiled."""
    for compiled in ("no", "yes") if check.device == "cuda" else ("no",):
        check.run("resume", f"compiled={compiled}", partial(compare_resumed, check, compiled))


def compare_resumed(check: Check, compiled: str) -> str:
    """Train 6 cycles at once, and in two processes of 3 cycles each.

    Raises:
        RuntimeError: a command failed, or the units of the two runs differ.
    """
    with tempfile.TemporaryDirectory() as directory:
        homes = {name: Path(directory, name) for name in ("whole", "parts")}
        with ThreadPoolExecutor() as pool:
            calls = [pool.submit(train_command, check, compiled, home) for home in homes.values()]
            for call in calls:
                call.result()
        log = check.out / f"parts-{compiled}.log"
        run_dqn(homes["parts"], ["verify", "parts"], log, RESUME_SECONDS)
        whole, parts = (unit_digests(home, name) for name, home in homes.items())
    different = [key for key in dict.fromkeys([*whole, *parts]) if whole.get(key) != parts.get(key)]
    if different:
        cycle, kind = different[0]
        raise RuntimeError(f"{len(different)} of {len(whole)} units differ; the first is {kind} of cycle {cycle}")
    return f"all {len(whole)} units are the same"


def train_command(check: Check, compiled: str, home: Path) -> None:
    """Train the run `whole` in one process, or the run `parts` in two with compiler caches of their own."""
    log = check.out / f"{home.name}-{compiled}.log"
    log.unlink(missing_ok=True)
    fields = [f"device={check.device}", f"compiled={compiled}", f"keep_cycles={CYCLES + 1}"]
    if check.device == "cpu":
        fields += [f"{name}={value}" for name, value in SMALL.items()]
    new = ["--name", home.name, "--seed", "3", *set_options(fields)]
    goals = [(CYCLES, new)] if home.name == "whole" else [(CYCLES // 2, new), (CYCLES, ["--resume", home.name])]
    for cycles, options in goals:
        caches = {
            name: str(home / f"{name}-{cycles}".lower()) for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
        }
        run_dqn(home, ["train", "--cycles", str(cycles), *options], log, RESUME_SECONDS, caches)


def unit_digests(home: Path, name: str) -> dict[tuple[int, str], str]:
    """Digests of all units of a run, by cycle and kind, the oldest first."""
    from storage.runs import open_run, open_tracking
    from storage.units.unit import KINDS

    use_home(home)
    run = open_run(open_tracking().find_run(name).info.run_id)
    units = sorted((cycle, number, kind) for number, kind in enumerate(KINDS) for cycle in run.cycles(kind))
    return {(cycle, str(kind)): run.unit(kind, cycle).digest for cycle, _, kind in units}


def check_tests(check: Check) -> None:
    """Run the tests of the package dqn."""
    with check.results.attempt("tests"):
        command = [sys.executable, "-m", "pytest", "-q", "--numprocesses", "4", "--dist", "loadfile", "tests/dqn"]
        done = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True, timeout=TEST_SECONDS)
        (check.out / "tests.log").write_text(done.stdout + done.stderr)
        last = ((done.stdout + done.stderr).strip().splitlines() or ["no output"])[-1]
        if done.returncode:
            raise RuntimeError(f"{last} (details in tests.log)")
        check.results.add("tests", "tests of dqn", last)


PARTS: dict[str, Callable[[Check], None]] = {
    "machine": check_machine,
    "learner": check_learner,
    "processes": check_processes,
    "resume": check_resume,
    "tests": check_tests,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts, and return the exit status."""
    options = parser("check", __doc__)
    given = parse_parts(options, PARTS, arguments)
    check = Check(given.device, Results(given.out / "check.json"), given.out)
    for part in given.parts or PARTS:
        with check.results.attempt(part):
            PARTS[part](check)
    return check.results.finish()


if __name__ == "__main__":
    sys.exit(main())
