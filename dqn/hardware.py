"""What this machine computes with, decided once at the start of a run."""

from __future__ import annotations

import ctypes
import os

import torch

from dqn.config import TrainConfig

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of the C library's malloc.h
_GROUP_LANES = 16  # fewer lanes are not worth a look of the network by themselves
_GPU_GROUPS = 4  # while the GPU looks at one group, the others play


def resolve(config: TrainConfig) -> TrainConfig:
    """`config` with every `auto` of device, precision, threads and lane groups replaced by this machine's choice.

    bfloat16 is chosen only where the processor multiplies it in hardware; emulated it is
    hundreds of times slower than float32.

    Raises:
        ValueError: the configuration asks for a CUDA device and there is none.
    """
    cuda = torch.cuda.is_available()
    if config.device == "cuda" and not cuda:
        raise ValueError("device is cuda, but torch finds no CUDA device here; use cpu or auto")
    device = ("cuda" if cuda else "cpu") if config.device == "auto" else config.device
    if config.precision != "auto":
        precision = config.precision
    else:
        fast = torch.cuda.is_bf16_supported() if device == "cuda" else _cpu_multiplies_bfloat16()
        precision = "bfloat16" if fast else "float32"
    threads = config.threads or len(os.sched_getaffinity(0))
    most = max(1, min(threads, config.lanes // _GROUP_LANES))
    groups = config.lane_groups or (min(most, _GPU_GROUPS) if device == "cuda" else most)
    chosen = {"device": device, "precision": precision, "threads": threads, "lane_groups": groups}
    return config.model_copy(update=chosen)


def playable(config: TrainConfig) -> TrainConfig:
    """`config` for playing only: on the CPU in float32 where the device it was trained on is missing."""
    if config.device == "cuda" and not torch.cuda.is_available():
        return config.model_copy(update={"device": "cpu", "precision": "float32"})
    return config


def prepare(config: TrainConfig) -> torch.device:
    """Set torch up for a resolved configuration and return its device.

    Raises:
        ValueError: the run was started on a device or with a thread count that this machine lacks.
    """
    if config.device == "cuda":
        if not torch.cuda.is_available():
            raise ValueError("this run was started on a CUDA device and torch finds none here; start a new run")
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
    torch.set_num_threads(config.threads)
    _keep_freed_memory()
    return torch.device(config.device)


def _keep_freed_memory() -> None:
    """Have the C library keep what is freed for the next batch, which needs just as much.

    By default it gives large blocks back, and the kernel clears every page again when it is next touched:
    a quarter of the time of a batch.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # not every C library has it
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


def _cpu_multiplies_bfloat16() -> bool:
    supported = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
    return bool(supported or getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())
