"""Device, precision and threads of this machine, resolved once at the start of a run."""

from __future__ import annotations

import ctypes
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dqn.config import TrainConfig

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # from malloc.h of the C library
_GROUP_LANES = 16  # a smaller batch does not amortize the cost of a forward pass
_GPU_GROUPS = 4  # while the GPU estimates for one group, the others step their games

_log = logging.getLogger(__name__)


def resolve(config: TrainConfig) -> TrainConfig:
    """`config` with every `auto` of the group "Machine" replaced by the choice for this machine.

    bfloat16 is chosen only if the processor multiplies it in hardware. Emulated, it is hundreds of times slower than
    float32.

    Raises:
        ValueError: the configuration requires something that this machine does not have.
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
            _log.warning(
                "no C++ compiler was found, so the loss is not compiled for the GPU and optimization is slower"
            )
    threads = config.threads or len(os.sched_getaffinity(0))
    most = max(1, min(threads, config.lanes // config.shards // _GROUP_LANES))
    groups = config.lane_groups or (min(most, _GPU_GROUPS) if device == "cuda" else most)
    # In one process, play and training use all cores already: see docs/performance.md.
    overlap = "no" if config.overlap == "auto" else config.overlap
    chosen = {"device": device, "precision": precision, "compiled": compiled, "overlap": overlap}
    return config.model_copy(update={**chosen, "threads": threads, "lane_groups": groups})


def playable(config: TrainConfig) -> TrainConfig:
    """`config` for playing only: on the CPU and in float32 if this machine lacks the device or the precision."""
    config = config.model_copy(update={"compiled": "no"})
    if config.device == "cuda" and not torch.cuda.is_available():
        config = config.model_copy(update={"device": "cpu", "precision": "float32"})
    if config.precision == "bfloat16" and not _multiplies_bfloat16(config.device):
        config = config.model_copy(update={"precision": "float32"})
    return config


def prepare(config: TrainConfig) -> torch.device:
    """Set torch up for a resolved configuration and return its device.

    Fewer cores than threads are only logged, because they change the speed but no result.

    Raises:
        ValueError: this machine lacks the device, the precision or the compiler that the run was started with.
    """
    if lacking := _lacking(config.device, config.precision, config.compiled, config.optimizer_processes):
        raise ValueError(
            f"this run cannot be resumed on this machine: {lacking}; resume it on another, or start a new run"
        )
    if config.device == "cuda":
        set_up_cuda()
    cores = len(os.sched_getaffinity(0))
    if config.threads > cores and torch.get_num_threads() != config.threads:
        _log.warning("this run uses %d threads, but there are %d cores, so it is slower", config.threads, cores)
    torch.set_num_threads(config.threads)
    _keep_freed_memory()
    return torch.device(config.device)


@contextmanager
def memory_advice(advice: str) -> Iterator[None]:
    """Give torch's errors about full memory one line that ends with `advice`, which says what needs less memory.

    Raises:
        MemoryError: the block needs more memory than the device has.
    """
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one, too
        text = " ".join(str(error).split())
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in text:
            raise
        tried = re.search(r"[Tt]ri(?:ed|ying) to allocate ([\d.]+ \w+)", text)
        amount = f" ({tried[1]} more are needed)" if tried else ""
        raise MemoryError(f"the memory of the device is full{amount}; {advice}") from None


def set_up_cuda() -> None:
    """Make CUDA kernels add in a fixed order, and multiply float32 in float32 instead of TensorFloat32."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the first matrix product is computed
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    # `fp32_precision` is not set, because inductor reads the older settings, which raise an error if the two differ.
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")


def _lacking(device: str, precision: str, compiled: str, processes: int) -> str:
    """A message about the first of these that this machine does not have; empty if it has all."""
    if device == "cuda" and not torch.cuda.is_available():
        return "device is cuda, but torch finds no CUDA device"
    if device == "cuda" and processes > 1 and torch.cuda.device_count() < processes:
        return f"optimizer_processes is {processes}, but torch finds {torch.cuda.device_count()} CUDA devices"
    if precision == "bfloat16" and not _multiplies_bfloat16(device):
        return "precision is bfloat16, but this processor emulates it, which takes hundreds of times longer"
    if compiled == "yes" and not _has_compiler():
        return "compiled is yes, but there is no C++ compiler"
    return ""


def _keep_freed_memory() -> None:
    """Make the C library keep freed memory for the next batch, which needs the same amount.

    By default it returns large blocks to the kernel, which clears every page again at its next use. That takes a
    quarter of the time of a batch.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # some C libraries do not have it
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
    """Whether torch.compile finds the C++ compiler that it requires."""
    return any(shutil.which(name) for name in (os.environ.get("CXX"), "g++", "clang++") if name)
