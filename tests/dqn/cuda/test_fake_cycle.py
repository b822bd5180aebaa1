"""A training cycle on a CUDA device, without one: devices, types, and what waits for the device.

`make test` has no GPU, so `fake_cycle.py` computes with tensors that have no numbers. What only a GPU can show is in
benchmarks/gpu.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.skipif(
    torch.version.cuda is not None, reason="torch's CUDA build has a CUDA device of its own; see benchmarks/gpu"
)

CASES: list[tuple[str, dict[str, Any]]] = [
    ("fast", {}),
    ("tutorial", {}),
    ("fast", {"network": "nature", "ema_decay": 0, "max_grad_norm": 0, "l2": 1e-4}),
    ("fast", {"network": "nips", "optimizer": "adam"}),
    ("fast", {"network": "small", "dropout": 0.1}),
]
UPLOADS = 3  # states, targets and actions of the replay memory
BATCHES = 64 // 16
COPY = "aten::_to_copy cpu+cuda"


@pytest.fixture(scope="module")
def results() -> list[dict[str, Any]]:
    command = [sys.executable, "-W", "ignore", Path(__file__).with_name("fake_cycle.py"), json.dumps(CASES)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def test_networks_and_memory_are_on_the_device(results: list[dict[str, Any]]) -> None:
    for result in results:
        assert result["online"] == ["torch.float32 cuda:0"]
        assert result["compute"] == ["torch.bfloat16 cuda:0", "torch.float32 cuda:0"]
        assert result["memory"] == ["cuda"]
        assert result["checkpoint"] == ["cpu"]


def test_batch_waits_for_nothing(results: list[dict[str, Any]]) -> None:
    """Only dropout copies: its draws are made on the CPU, so that they are the same on every device."""
    for (_, overrides), result in zip(CASES, results, strict=True):
        assert result["batch"] == ({COPY: 1} if "dropout" in overrides else {})


def test_optimization_copies_indices_to_the_device_and_losses_back(results: list[dict[str, Any]]) -> None:
    for (_, overrides), result in zip(CASES, results, strict=True):
        dropout = BATCHES if "dropout" in overrides else 0
        assert result["optimization"] == {COPY: UPLOADS + BATCHES + dropout + 1}


def test_estimate_copies_states_to_the_device_and_q_values_back(results: list[dict[str, Any]]) -> None:
    assert all(result["estimate"] == {COPY: 2} for result in results)


def test_targets_on_the_wrong_device_are_noticed(results: list[dict[str, Any]]) -> None:
    assert all(result["planted"] == "noticed" for result in results)
