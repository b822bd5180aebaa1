from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from played import SEED

import dqn.envs.histories
import dqn.envs.lanes
from dqn.envs.games import GameSettings
from dqn.envs.histories import LaneHistory, first_histories
from dqn.envs.lanes import Lanes
from dqn.learning.replay import ReplayMemory


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Use one thread of torch, because networks this small are slower on several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def torch_flags() -> Iterator[None]:
    """Restore the flags that `dqn.hardware.set_up_cuda` sets, after the test."""
    cudnn, precision = torch.backends.cudnn, torch.get_float32_matmul_precision()
    before = cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32
    yield
    cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32 = before
    torch.set_float32_matmul_precision(precision)


@pytest.fixture(scope="session")
def toy_memory() -> Callable[[int], ReplayMemory]:
    """Makes a replay memory of the given number of random states, which a network can memorize."""

    def make(states: int, actions: int = 3) -> ReplayMemory:
        draws = np.random.default_rng(states)
        return ReplayMemory(
            states=torch.from_numpy(draws.integers(0, 256, (states, 105, 80, 2), np.uint8)),
            q_values=torch.from_numpy(draws.normal(size=(states, actions)).astype(np.float32)),
            actions=torch.from_numpy(draws.integers(actions, size=states)),
            estimation_errors=draws.random(states).astype(np.float32),
        )

    return make


@pytest.fixture
def seeded_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets the number of steps after which lanes are seeded again, so that short tests include it."""

    def set_steps(steps: int) -> None:
        monkeypatch.setattr(dqn.envs.lanes, "SEEDED_STEPS", steps)
        monkeypatch.setattr(dqn.envs.histories, "SEEDED_STEPS", steps)

    return set_steps


@pytest.fixture
def open_lanes() -> Iterator[Callable[..., Lanes]]:
    """Opens lanes, and closes them after the test."""
    opened = []

    def open_them(
        game: str, histories: list[LaneHistory] | int, seed: int = SEED, threads: int = 0, **settings: int
    ) -> Lanes:
        histories = first_histories(histories) if isinstance(histories, int) else histories
        opened.append(Lanes(GameSettings(game, seed, **settings), histories, threads=threads))
        return opened[-1]

    yield open_them
    for lanes in opened:
        lanes.close()
