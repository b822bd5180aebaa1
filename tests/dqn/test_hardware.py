from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from dqn import hardware
from dqn.config import make_config


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pretend to be a machine with or without a CUDA device, and with or without fast bfloat16."""

    def pretend(*, cuda: bool, fast_bfloat16: bool, cores: int = 6) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: cuda and fast_bfloat16)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: not cuda and fast_bfloat16, raising=False)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False, raising=False)
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))

    return pretend


@pytest.mark.parametrize(
    ("cuda", "fast_bfloat16", "asked", "device", "precision"),
    [
        (False, False, {}, "cpu", "float32"),
        (False, True, {}, "cpu", "bfloat16"),
        (True, True, {}, "cuda", "bfloat16"),
        (True, False, {}, "cuda", "float32"),
        (True, True, {"device": "cpu"}, "cpu", "float32"),  # what the CPU can do decides, not the GPU
        (True, True, {"device": "cuda", "precision": "float32"}, "cuda", "float32"),
        (False, False, {"precision": "bfloat16"}, "cpu", "bfloat16"),
    ],
)
def test_auto_is_replaced_by_what_the_machine_has(
    cuda: bool, fast_bfloat16: bool, asked: dict[str, str], device: str, precision: str, machine: Any
) -> None:
    machine(cuda=cuda, fast_bfloat16=fast_bfloat16)
    resolved = hardware.resolve(make_config("fast", asked))
    assert (resolved.device, resolved.precision) == (device, precision)


@pytest.mark.parametrize(("asked", "threads"), [(0, 6), (2, 2), (64, 64)])
def test_threads_are_one_for_each_core_unless_asked_for(asked: int, threads: int, machine: Any) -> None:
    machine(cuda=False, fast_bfloat16=False, cores=6)
    assert hardware.resolve(make_config("fast", {"threads": asked})).threads == threads


def test_everything_else_stays_and_resolving_again_changes_nothing(machine: Any) -> None:
    machine(cuda=False, fast_bfloat16=False)
    config = make_config("tutorial", {"seed": 3})
    resolved = hardware.resolve(config)
    choices = {"device": "auto", "precision": "auto", "threads": 0, "lane_groups": 0}
    assert resolved.model_copy(update=choices) == config
    machine(cuda=False, fast_bfloat16=True, cores=2)
    assert hardware.resolve(resolved) == resolved


def test_cuda_without_a_cuda_device_is_refused(machine: Any) -> None:
    machine(cuda=False, fast_bfloat16=False)
    with pytest.raises(ValueError, match="use cpu or auto"):
        hardware.resolve(make_config("fast", {"device": "cuda"}))
    with pytest.raises(ValueError, match="start a new run"):
        hardware.prepare(make_config("fast", {"device": "cuda", "precision": "float32", "threads": 1}))


def test_prepare_sets_the_threads_and_names_the_device() -> None:
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
def test_groups_of_lanes_keep_the_cores_busy_but_are_not_too_small(
    machine: Any, cores: int, lanes: int, cuda: bool, groups: int
) -> None:
    machine(cuda=cuda, fast_bfloat16=False, cores=cores)
    assert hardware.resolve(make_config("fast", {"lanes": lanes})).lane_groups == groups
    assert hardware.resolve(make_config("fast", {"lanes": lanes, "lane_groups": 1})).lane_groups == 1


@pytest.mark.parametrize(
    ("lanes", "groups", "sizes"), [(64, 2, [32, 32]), (7, 2, [4, 3]), (5, 4, [2, 2, 1]), (1, 1, [1])]
)
def test_groups_are_all_lanes_in_order(lanes: int, groups: int, sizes: list[int]) -> None:
    slices = make_config("fast", {"lanes": lanes, "lane_groups": groups}).groups()
    assert [each.stop - each.start for each in slices] == sizes
    assert [lane for each in slices for lane in range(lanes)[each]] == list(range(lanes))
