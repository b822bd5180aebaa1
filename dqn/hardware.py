"""What this machine computes with, decided once at the start of a run."""

from __future__ import annotations

import ctypes
import logging
import os
import shutil

import torch

from dqn.config import TrainConfig

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of the C library's malloc.h
_GROUP_LANES = 16  # fewer lanes are not worth a look of the network by themselves
_GPU_GROUPS = 4  # while the GPU looks at one group, the others play

_log = logging.getLogger(__name__)


def resolve(config: TrainConfig) -> TrainConfig:
    """`config` with every `auto` of its machine's part replaced by this machine's choice.

    bfloat16 is chosen only where the processor multiplies it in hardware; emulated it is
    hundreds of times slower than float32.

    Raises:
        ValueError: the configuration asks for what this machine lacks.
    """
    cuda = torch.cuda.is_available()
    device = ("cuda" if cuda else "cpu") if config.device == "auto" else config.device
    if lacking := _lacking(device, config.precision, config.compiled, config.optimizer_processes):
        raise ValueError(f"{lacking}; use another value or auto")
    precision, compiled = config.precision, config.compiled
    if precision == "auto":
        precision = "bfloat16" if _multiplies_bfloat16(device) else "float32"
    if compiled == "auto":
        compiled = "yes" if device == "cuda" and _has_compiler() and not config.dropout else "no"
        if device == "cuda" and not _has_compiler():
            _log.warning("there is no C++ compiler here, so nothing is compiled for the GPU; it works, but slower")
    threads = config.threads or len(os.sched_getaffinity(0))
    most = max(1, min(threads, config.lanes // config.shards // _GROUP_LANES))
    groups = config.lane_groups or (min(most, _GPU_GROUPS) if device == "cuda" else most)
    chosen = {"device": device, "precision": precision, "compiled": compiled}
    return config.model_copy(update={**chosen, "threads": threads, "lane_groups": groups})


def playable(config: TrainConfig) -> TrainConfig:
    """`config` for playing only: in float32, on the CPU, where what it was trained with is missing."""
    config = config.model_copy(update={"compiled": "no"})
    if config.device == "cuda" and not torch.cuda.is_available():
        config = config.model_copy(update={"device": "cpu", "precision": "float32"})
    if config.precision == "bfloat16" and not _multiplies_bfloat16(config.device):
        config = config.model_copy(update={"precision": "float32"})
    return config


def prepare(config: TrainConfig) -> torch.device:
    """Set torch up for a resolved configuration and return its device.

    Fewer cores than threads are told in the log: what is computed does not change.

    Raises:
        ValueError: the run was started with a device, a precision or a compiler that this machine lacks.
    """
    if lacking := _lacking(config.device, config.precision, config.compiled, config.optimizer_processes):
        raise ValueError(f"this run cannot go on here as it began: {lacking}; go on elsewhere, or start a new run")
    if config.device == "cuda":
        set_up_cuda()
    cores = len(os.sched_getaffinity(0))
    if config.threads > cores and torch.get_num_threads() != config.threads:
        _log.warning("this run computes with %d threads and there are %d cores: it is slower", config.threads, cores)
    torch.set_num_threads(config.threads)
    _keep_freed_memory()
    return torch.device(config.device)


def set_up_cuda() -> None:
    """Have CUDA kernels add in a fixed order, and multiply float32 in float32 and not in TensorFloat32."""
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    # Not by `fp32_precision`: inductor reads the older settings, which raise an error once both kinds differ.
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")


def _lacking(device: str, precision: str, compiled: str, processes: int) -> str:
    """What of these this machine does not have, in words; empty if it has all."""
    if device == "cuda" and not torch.cuda.is_available():
        return "device is cuda, and torch finds no CUDA device"
    if device == "cuda" and processes > 1 and torch.cuda.device_count() < processes:
        return f"optimizer_processes is {processes}, and torch finds {torch.cuda.device_count()} CUDA devices"
    if precision == "bfloat16" and not _multiplies_bfloat16(device):
        return "precision is bfloat16, and this processor would take hundreds of times longer to emulate it"
    if compiled == "yes" and not _has_compiler():
        return "compiled is yes, and there is no C++ compiler"
    return ""


def _keep_freed_memory() -> None:
    """Have the C library keep what is freed for the next batch, which needs just as much.

    By default it gives large blocks back, and the kernel clears every page again when it is next touched:
    a quarter of the time of a batch.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # not every C library has it
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


def _multiplies_bfloat16(device: str) -> bool:
    """Whether the device multiplies bfloat16 in hardware."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    supported = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
    return bool(supported or getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())


def _has_compiler() -> bool:
    """Whether torch.compile would find the C++ compiler that it needs."""
    return any(shutil.which(name) for name in (os.environ.get("CXX"), "g++", "clang++") if name)
