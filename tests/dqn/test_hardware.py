from __future__ import annotations

import os
import shutil
from typing import Any

import pytest
import torch

from dqn import hardware
from dqn.config import make_config


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Simulate a machine with or without a CUDA device, and with or without fast bfloat16."""

    def pretend(*, cuda: bool, fast_bfloat16: bool, cores: int = 6, compiler: bool = True) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation or (cuda and fast_bfloat16)
        )
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: not cuda and fast_bfloat16, raising=False)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False, raising=False)
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
        monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}" if compiler else None)

    return pretend


@pytest.mark.parametrize(
    ("cuda", "fast_bfloat16", "asked", "device", "precision"),
    [
        (False, False, {}, "cpu", "float32"),
        (False, True, {}, "cpu", "bfloat16"),
        (True, True, {}, "cuda", "bfloat16"),
        (True, False, {}, "cuda", "float32"),
        (True, True, {"device": "cpu"}, "cpu", "float32"),  # the precision depends on the device that is used
        (True, True, {"device": "cuda", "precision": "float32"}, "cuda", "float32"),
        (False, True, {"precision": "bfloat16"}, "cpu", "bfloat16"),
    ],
)
def test_resolve_chooses_device_and_precision(
    cuda: bool, fast_bfloat16: bool, asked: dict[str, str], device: str, precision: str, machine: Any
) -> None:
    machine(cuda=cuda, fast_bfloat16=fast_bfloat16)
    resolved = hardware.resolve(make_config("fast", asked))
    assert (resolved.device, resolved.precision) == (device, precision)


@pytest.mark.parametrize(("asked", "threads"), [(0, 6), (2, 2), (64, 64)])
def test_resolve_uses_one_thread_per_core(asked: int, threads: int, machine: Any) -> None:
    machine(cuda=False, fast_bfloat16=False, cores=6)
    assert hardware.resolve(make_config("fast", {"threads": asked})).threads == threads


@pytest.mark.parametrize(("asked", "overlap"), [("auto", "no"), ("no", "no"), ("yes", "yes")])
def test_resolve_does_not_overlap_in_one_process(asked: str, overlap: str, machine: Any) -> None:
    machine(cuda=False, fast_bfloat16=False)
    assert hardware.resolve(make_config("fast", {"overlap": asked})).overlap == overlap


def test_resolve_changes_only_auto_fields(machine: Any) -> None:
    machine(cuda=False, fast_bfloat16=False)
    config = make_config("fast", {"seed": 3})
    resolved = hardware.resolve(config)
    assert resolved.for_another_machine() == config
    machine(cuda=False, fast_bfloat16=True, cores=2)
    assert hardware.resolve(resolved) == resolved


@pytest.mark.parametrize(
    ("asked", "missing"),
    [
        ({"device": "cuda", "precision": "float32"}, "torch finds no CUDA device"),
        ({"device": "cpu", "precision": "bfloat16"}, "emulates it"),
        ({"device": "cpu", "precision": "float32", "compiled": "yes"}, "no C\\+\\+ compiler"),
    ],
)
def test_missing_hardware_is_refused(asked: dict[str, str], missing: str, machine: Any) -> None:
    machine(cuda=False, fast_bfloat16=False, compiler=False)
    config = make_config("fast", {"threads": 1, **asked})
    with pytest.raises(ValueError, match=f"{missing}.*use another value or auto"):
        hardware.resolve(config)
    with pytest.raises(ValueError, match=f"cannot be resumed on this machine: .*{missing}.*start a new run"):
        hardware.prepare(config)
    played = hardware.playable(config)
    assert (played.device, played.precision, played.compiled) == ("cpu", "float32", "no")
    assert hardware.prepare(played) == torch.device("cpu")


@pytest.mark.parametrize(
    ("cuda", "compiler", "compiled"), [(True, True, "yes"), (True, False, "no"), (False, True, "no")]
)
def test_resolve_compiles_on_gpu_with_compiler(
    cuda: bool, compiler: bool, compiled: str, machine: Any, caplog: pytest.LogCaptureFixture
) -> None:
    machine(cuda=cuda, fast_bfloat16=True, compiler=compiler)
    assert hardware.resolve(make_config("fast")).compiled == compiled
    assert len(caplog.messages) == (cuda and not compiler), "one warning"
    assert hardware.resolve(make_config("fast", {"dropout": 0.1})).compiled == "no"


def test_prepare_warns_about_more_threads_than_cores(machine: Any, caplog: pytest.LogCaptureFixture) -> None:
    machine(cuda=False, fast_bfloat16=False, cores=1)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        for _ in range(2):
            hardware.prepare(make_config("fast", {"device": "cpu", "precision": "float32", "threads": 3}))
        assert caplog.messages == ["this run uses 3 threads, but there are 1 cores, so it is slower"]
    finally:
        torch.set_num_threads(before)


def test_prepare_sets_threads_and_returns_device() -> None:
    before = torch.get_num_threads()
    try:
        device = hardware.prepare(make_config("fast", {"device": "cpu", "precision": "float32", "threads": 3}))
        assert device == torch.device("cpu") and torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("cores", "lanes", "cuda", "groups"),
    [(2, 64, False, 2), (1, 64, False, 1), (8, 64, False, 4), (2, 16, False, 1), (16, 256, True, 4), (2, 4, True, 1)],
)
def test_resolve_chooses_lane_groups(machine: Any, cores: int, lanes: int, cuda: bool, groups: int) -> None:
    machine(cuda=cuda, fast_bfloat16=False, cores=cores)
    assert hardware.resolve(make_config("fast", {"lanes": lanes})).lane_groups == groups
    assert hardware.resolve(make_config("fast", {"lanes": lanes, "lane_groups": 1})).lane_groups == 1


@pytest.mark.parametrize(
    ("lanes", "groups", "sizes"), [(64, 2, [32, 32]), (7, 2, [4, 3]), (5, 4, [2, 2, 1]), (1, 1, [1])]
)
def test_groups_cover_all_lanes_in_order(lanes: int, groups: int, sizes: list[int]) -> None:
    slices = make_config("fast", {"lanes": lanes, "lane_groups": groups}).groups()
    assert [each.stop - each.start for each in slices] == sizes
    assert [lane for each in slices for lane in range(lanes)[each]] == list(range(lanes))


def test_each_optimizer_process_requires_a_gpu(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(cuda=True, fast_bfloat16=True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert hardware.resolve(make_config("fast", {"optimizer_processes": 2})).device == "cuda"
    with pytest.raises(ValueError, match="optimizer_processes is 3, but torch finds 2 CUDA devices; use another value"):
        hardware.resolve(make_config("fast", {"optimizer_processes": 3}))
    assert hardware.resolve(make_config("fast", {"optimizer_processes": 3, "device": "cpu"})).device == "cpu"


def test_lane_groups_are_per_shard(machine: Any) -> None:
    machine(cuda=False, fast_bfloat16=False, cores=8)
    config = hardware.resolve(make_config("fast", {"lanes": 64, "shards": 2}))
    assert config.lane_groups == 2 and [len(config.groups(shard)) for shard in (0, 1)] == [2, 2]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.usefixtures("torch_flags")
def test_prepare_sets_up_cuda(tf32: bool, precision: str, machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """float32 is not computed in TensorFloat32, and the settings can be read as inductor reads them."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that it is restored
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    machine(cuda=True, fast_bfloat16=True)
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32 = False, True, True
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    config = make_config("fast", {"device": "cuda", "precision": precision, "threads": torch.get_num_threads()})
    assert hardware.prepare(config) == torch.device("cuda")
    assert (cudnn.deterministic, cudnn.benchmark) == (True, False)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert (cudnn.allow_tf32, matmul.allow_tf32) == (False, False)
    assert "tf32" not in (cudnn.conv.fp32_precision, matmul.fp32_precision)
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.usefixtures("torch_flags")
def test_prepare_for_cpu_keeps_cuda_settings() -> None:
    torch.backends.cudnn.allow_tf32 = True
    hardware.prepare(make_config("fast", {"device": "cpu", "precision": "float32", "threads": torch.get_num_threads()}))
    assert torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.11 GiB\nof which ..."
            ),
            "the memory of the device is full (2.50 GiB more are needed); use less",
        ),
        (torch.OutOfMemoryError("CUDA error: out of memory"), "the memory of the device is full; use less"),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried to"
            ),
            "the memory of the device is full; use less",
        ),
    ],
    ids=["cuda", "cuda without numbers", "cpu"],
)
def test_full_memory_is_one_line_with_advice(error: RuntimeError, message: str) -> None:
    with pytest.raises(MemoryError) as raised, hardware.memory_advice("use less"):
        raise error
    assert str(raised.value) == message


def test_other_errors_are_not_about_memory() -> None:
    with pytest.raises(RuntimeError, match="shapes"), hardware.memory_advice("use less"):
        raise RuntimeError("the shapes do not match")
