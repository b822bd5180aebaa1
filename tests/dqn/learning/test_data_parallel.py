"""Two processes that each train on half of every batch compute what one process does on whole batches."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from dqn.config import TrainConfig, make_config
from dqn.learning import data_parallel
from dqn.learning.data_parallel import Processes, _Result
from dqn.learning.learner import Learner
from dqn.learning.optimization import OptimizationResult, train_on
from dqn.learning.replay import ReplayMemory

CPU = torch.device("cpu")
SETTINGS = {"device": "cpu", "precision": "float32", "network": "small", "batch_size": 15, "threads": 2}
SCHEDULED = {"learning_rate": 1e-3, "max_epochs": 2.0, "loss_limit": 0.0}


def config(**settings: Any) -> TrainConfig:
    return make_config("fast", {**SETTINGS, "optimizer_processes": 2, **settings})


@pytest.fixture(scope="module")
def processes() -> Iterator[Processes]:
    started = Processes(config(), 3)
    yield started
    started.close()


@pytest.fixture
def memory() -> ReplayMemory:
    draws = np.random.default_rng(0)
    return ReplayMemory(
        states=torch.from_numpy(draws.integers(0, 256, (40, 105, 80, 2), np.uint8)),
        q_values=torch.from_numpy(draws.random((40, 3), np.float32)),
        actions=torch.from_numpy(draws.integers(0, 3, 40)),
        estimation_errors=draws.random(40, np.float32),
    )


def learner() -> Learner:
    return Learner(config(), 3, CPU)


def weights(of: Learner) -> torch.Tensor:
    return torch.cat([weight.detach().flatten() for weight in of.online_network.parameters()])


def test_two_processes_train_as_one(processes: Processes, memory: ReplayMemory) -> None:
    one, two = learner(), learner()
    before = weights(two).clone()
    reported: list[tuple[int, int]] = []
    for cycle in (1, 2):  # the second cycle starts with the optimizer's state of the first
        expected = train_on(one, memory, cycle, SCHEDULED)
        found = processes.train_on(
            two, memory, cycle, SCHEDULED, lambda done, batches: reported.append((done, batches))
        )
        assert (found.epochs, found.states_trained) == (expected.epochs, expected.states_trained)
        np.testing.assert_allclose(found.losses, expected.losses, rtol=1e-4)
    assert reported[:5] == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)], "batches of 8 and 7 states"
    assert (weights(two) - before).abs().max() > 1e-3
    torch.testing.assert_close(weights(two), weights(one), rtol=1e-3, atol=1e-5)
    averages = [list(each.average_network.parameters()) for each in (two, one)]
    torch.testing.assert_close(*averages, rtol=1e-3, atol=1e-5)
    assert set(two.state_dict().optimizer) == set(one.state_dict().optimizer)
    assert processes.are_for(config(), 3) and not processes.are_for(config(seed=1), 3)


def test_processes_with_different_weights_are_refused(
    processes: Processes, memory: ReplayMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = OptimizationResult(np.zeros(1, np.float32), 1.0, 1)
    monkeypatch.setattr(processes, "_results", lambda on_batch: [_Result(each, result, None) for each in "ab"])
    monkeypatch.setattr(processes, "_connections", [])
    monkeypatch.setattr(processes, "close", lambda: None)
    with pytest.raises(RuntimeError, match="the 2 optimizer processes computed different weights in cycle 3"):
        processes.train_on(learner(), memory, 3, SCHEDULED)


def test_killed_process_ends_all_with_one_line(processes: Processes, memory: ReplayMemory) -> None:
    children = [process.pid for process in processes._processes]

    def kill(done: int, batches: int) -> None:
        os.kill(children[1], signal.SIGKILL)

    with pytest.raises(ChildProcessError) as caught:
        processes.train_on(learner(), memory, 1, {**SCHEDULED, "max_epochs": 1_000.0}, kill)
    assert re.fullmatch(r"optimizer process \d of 2 .*", str(caught.value))
    assert not processes.are_for(config(), 3) and not any(map(psutil.pid_exists, children))


def test_daemon_process_cannot_start_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_parallel.multiprocessing, "current_process", lambda: psutil.Popen)
    monkeypatch.setattr(psutil.Popen, "daemon", True, raising=False)
    with pytest.raises(ValueError, match="start the Dask worker that optimizes with --no-nanny"):
        Processes(config(), 3)


@pytest.mark.usefixtures("torch_flags")
def test_gpu_process_sets_up_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32 = False, True
    monkeypatch.setattr(data_parallel, "_LOOPBACK", {})
    monkeypatch.setattr(torch.cuda, "set_device", lambda rank: None)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *args, **settings: None)
    data_parallel._join_group(1, config(device="cuda"), "store")
    assert torch.backends.cudnn.deterministic and not torch.backends.cudnn.allow_tf32


def test_more_processes_than_batch_size_are_refused() -> None:
    with pytest.raises(ValueError, match="optimizer_processes is 16; it can be at most batch_size, which is 15"):
        config(optimizer_processes=16)
