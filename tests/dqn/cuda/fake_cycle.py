"""Run a training cycle on fake CUDA tensors, which have a shape, a type and a device but no numbers.

Prints as JSON what crosses devices or waits for the device in each part of the cycle. It is a program of its own,
because the hooks of `fake_device.cpp` must be loaded before torch asks for them.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event
from typing import Any

HERE = Path(__file__).parent
WAITING = {"aten::_local_scalar_dense", "aten::item", "aten::is_nonzero", "aten::nonzero", "aten::equal"}


def load_fake_device() -> None:
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.origin is not None
    torch_home = Path(spec.origin).parent
    libraries = torch_home / "lib"
    for name in ("libc10.so", "libtorch_cpu.so"):
        ctypes.CDLL(str(libraries / name), ctypes.RTLD_GLOBAL)
    built = Path(tempfile.mkdtemp(), "fake_device.so")
    options = ["-std=c++20", "-O0", "-w", "-shared", "-fPIC", f"-I{torch_home}/include", f"-L{libraries}"]
    subprocess.run(["c++", *options, HERE / "fake_device.cpp", "-lc10", "-ltorch_cpu", "-o", built], check=True)
    ctypes.CDLL(str(built))


load_fake_device()

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import dqn.envs.rollout
from dqn.checkpoint import Checkpoint, CheckpointMetadata
from dqn.config import make_config
from dqn.cycle import after_optimization, after_play, collect
from dqn.envs.histories import first_histories
from dqn.envs.lanes import open_lanes
from dqn.learning.learner import Learner
from dqn.learning.optimization import train_on
from dqn.learning.replay import ReplayMemory
from dqn.learning.sweep import SweepRule, backward_sweep

GPU = torch.device("cuda", 0)
ACTIONS = ("NOOP", "FIRE", "RIGHT", "LEFT")


class Watch(TorchDispatchMode):
    """Counts the operators whose tensors are on two devices, and those that wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        leaves = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
        devices = {leaf.device.type for leaf in leaves if leaf.ndim}  # a scalar on the CPU is an argument of a kernel
        name = func._schema.name
        if name in WAITING and any(leaf.device.type == "cuda" for leaf in leaves):
            self.found[f"{name} waits"] += 1
        elif len(devices) > 1:
            self.found[f"{name} {'+'.join(sorted(devices))}"] += 1
        return result


def watched(call: Callable[[], Any]) -> dict[str, int]:
    with Watch() as watch:
        call()
    return dict(watch.found)


def zeros(tensor: Tensor, **_: Any) -> np.ndarray:
    assert tensor.device.type == "cpu", "numpy reads only memory of the CPU"
    kind = {torch.bfloat16: "float32"}.get(tensor.dtype, str(tensor.dtype).removeprefix("torch."))
    return np.zeros(tuple(tensor.shape), kind)


def apply_without_swap(module: nn.Module, convert: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """`nn.Module._apply` with new parameters, because the parameters of fake tensors cannot be swapped."""
    for child in module.children():
        child._apply(convert)
    for name, parameter in module._parameters.items():
        if parameter is not None:
            with torch.no_grad():
                module._parameters[name] = nn.Parameter(convert(parameter), parameter.requires_grad)
    return module


def one_after_the_other(calls: Sequence[Callable[[Event], None]], most: int, torch_threads: int) -> None:
    """In place of `run_in_threads`: modes of torch belong to a thread."""
    for call in calls:
        call(Event())


def replace_what_needs_numbers() -> None:
    parts: Any = nn.Module
    parts._apply = apply_without_swap
    tensors: Any = Tensor
    tensors.numpy = zeros
    tensors.tolist = lambda self: zeros(self).tolist()
    tensors.pin_memory = lambda self, device=None: self
    nn.init.trunc_normal_ = lambda tensor, **_: tensor
    rollout: Any = dqn.envs.rollout
    rollout.run_in_threads = one_after_the_other
    cuda: Any = torch.cuda
    cuda.mem_get_info = lambda device: (80 << 30, 80 << 30)
    cuda.memory_reserved = cuda.memory_allocated = lambda device: 0


def cycle(preset: str, overrides: dict[str, Any]) -> dict[str, Any]:
    """What crosses devices in each part of one cycle."""
    small = {"lanes": 2, "lane_groups": 2, "replay_states": 64, "batch_size": 16, "threads": 1, "replay_fraction": 1}
    machine = {"device": "cuda", "precision": "bfloat16", "compiled": "no", "overlap": "no"}
    config = make_config(preset, {**small, **machine, **overrides})
    lanes = open_lanes(config, first_histories(config.lanes))
    results: dict[str, Any] = {}
    with FakeTensorMode(allow_non_fake_inputs=True):
        learner = Learner(config, len(ACTIONS), GPU)
        start = Checkpoint(CheckpointMetadata(config, ACTIONS), first_histories(config.lanes), *learner.state_dict())
        results["estimate"] = watched(lambda: learner.estimate(lanes[0].states))
        experience = collect(start, learner, lanes)
        memory = ReplayMemory.of(experience, backward_sweep(experience, SweepRule.of(config)))
        resident = memory.on(GPU)
        results["memory"] = {resident.states.device.type, resident.q_values.device.type, resident.actions.device.type}
        scheduled = {**config.scheduled(0), "max_epochs": 1.0, "loss_limit": 0.0}
        trained = []
        results["optimization"] = watched(lambda: trained.append(train_on(learner, memory, 1, scheduled)))
        batch = resident.batch(np.arange(16), GPU)
        draws = torch.Generator().manual_seed(0) if config.dropout else None
        results["batch"] = watched(lambda: learner.train_batch(*batch, draws))
        host = memory.batch(np.arange(16), torch.device("cpu"))
        try:
            learner.train_batch(batch[0], host[1], batch[2], draws)
            results["planted"] = "not noticed"
        except (RuntimeError, TypeError):
            results["planted"] = "noticed"
        after = after_optimization(after_play(start, experience), learner, trained[0])
        results["checkpoint"] = {tensor.device.type for tensor in (*after.weights.values(), *after.optimizer.values())}
        results["online"] = {f"{weight.dtype} {weight.device}" for weight in learner.online_network.parameters()}
        results["compute"] = {f"{weight.dtype} {weight.device}" for weight in learner.compute_network.parameters()}
    for group in lanes:
        group.close()
    return results


if __name__ == "__main__":
    torch.set_num_threads(1)
    replace_what_needs_numbers()
    cases: list[Any] = json.loads(sys.argv[1])
    print(json.dumps([cycle(preset, overrides) for preset, overrides in cases], default=sorted))
