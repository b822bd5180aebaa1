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
    """Networks this small are slower on many threads, much slower where the cores are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def torch_flags() -> Iterator[None]:
    """Restore what `dqn.hardware.set_up_cuda` sets, when the test is over."""
    cudnn, precision = torch.backends.cudnn, torch.get_float32_matmul_precision()
    before = cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32
    yield
    cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32 = before
    torch.set_float32_matmul_precision(precision)


@pytest.fixture(scope="session")
def toy_memory() -> Callable[[int], ReplayMemory]:
    """A replay memory of that many random states, to be learned by heart."""

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
    """Seed lanes anew after that many steps, so that short tests see it happen."""

    def set_steps(steps: int) -> None:
        monkeypatch.setattr(dqn.envs.lanes, "SEEDED_STEPS", steps)
        monkeypatch.setattr(dqn.envs.histories, "SEEDED_STEPS", steps)

    return set_steps


@pytest.fixture
def open_lanes() -> Iterator[Callable[..., Lanes]]:
    """Opens lanes, and closes them when the test is over."""
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
