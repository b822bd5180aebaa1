from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dqn.learning.replay
from dqn.envs.experience import Experience, Targets
from dqn.learning.replay import (
    ReplayMemory,
    balanced_batches,
    balanced_sizes,
    cut_at_starts,
    reestimated,
    shuffled_batches,
)


@pytest.mark.parametrize(
    ("high", "low", "batch_size", "sizes"),
    [
        (380, 20, 128, (121, 7)),  # 95 % of 128 is 121.6
        (100, 300, 128, (64, 64)),  # at least half
        (300, 100, 128, (96, 32)),
        (75, 25, 3, (2, 1)),
        (1, 399, 128, (1, 127)),  # exactly one high, which makes the tutorial's code crash
        (399, 1, 128, (127, 1)),
        (30, 370, 128, (30, 98)),  # fewer high than half a batch
        (500, 3, 500, (497, 3)),
        (0, 200, 128, (0, 128)),
        (200, 0, 128, (128, 0)),
        (5, 10, 128, (5, 10)),  # fewer than a batch
        (10, 5, 128, (10, 5)),
        (1, 0, 128, (1, 0)),
        (0, 1, 128, (0, 1)),
    ],
)
def test_balanced_sizes_by_hand(high: int, low: int, batch_size: int, sizes: tuple[int, int]) -> None:
    assert balanced_sizes(high, low, batch_size) == sizes


@given(high=st.integers(0, 300), low=st.integers(0, 300), batch_size=st.integers(1, 400))
def test_balanced_sizes_add_up_and_favour_high_errors(high: int, low: int, batch_size: int) -> None:
    if high + low == 0:
        return
    high_size, low_size = balanced_sizes(high, low, batch_size)
    places = min(batch_size, high + low)
    assert high_size + low_size == places
    assert 0 <= high_size <= high and 0 <= low_size <= low
    assert high_size >= min(high, int(places * max(high / (high + low), 0.5)))
    if low_size < low:  # there are enough low errors, so the high ones have no more than their share
        assert high_size <= max(places * high / (high + low), places / 2)


@settings(deadline=None)
@given(
    errors=st.lists(st.sampled_from([0.0, 0.09, 0.11, 3.0]), min_size=1, max_size=60),
    batch_size=st.integers(1, 80),
    seed=st.integers(0, 99),
)
def test_balanced_batches_have_balanced_sizes(errors: list[float], batch_size: int, seed: int) -> None:
    """Drawn without replacement within a batch."""
    table = np.array(errors, np.float32)
    high = int((table > 0.1).sum())
    sizes = balanced_sizes(high, len(table) - high, batch_size)
    for batch in islice(balanced_batches(table, 0.1, batch_size, np.random.default_rng(seed)), 3):
        assert len(set(batch.tolist())) == len(batch) == sum(sizes)
        assert (table[batch] > 0.1).sum() == sizes[0]


def test_balanced_batches_draw_every_state() -> None:
    errors = np.array([0, 1] * 10)
    batches = islice(balanced_batches(errors, 0.1, 4, np.random.default_rng(0)), 100)
    assert {int(index) for batch in batches for index in batch} == set(range(20))


def test_balanced_batches_contain_the_only_high_error() -> None:
    errors = np.zeros(50)
    errors[17] = 1
    for batch in islice(balanced_batches(errors, 0.1, 8, np.random.default_rng(0)), 5):
        assert 17 in batch and len(batch) == 8


@settings(deadline=None)
@given(states=st.integers(1, 60), batch_size=st.integers(1, 80), seed=st.integers(0, 99))
def test_shuffled_epoch_has_each_state_at_most_once(states: int, batch_size: int, seed: int) -> None:
    """Only states of the incomplete last batch are left out of an epoch."""
    size = min(batch_size, states)
    per_epoch = states // size
    batches = list(islice(shuffled_batches(states, batch_size, np.random.default_rng(seed)), 2 * per_epoch))
    assert all(len(batch) == size for batch in batches)
    for epoch in (batches[:per_epoch], batches[per_epoch:]):
        shown = np.concatenate(epoch)
        assert len(set(shown.tolist())) == len(shown) == per_epoch * size
        assert shown.min() >= 0 and shown.max() < states


def test_shuffled_epochs_differ() -> None:
    first, second = islice(shuffled_batches(50, 50, np.random.default_rng(0)), 2)
    assert first.tolist() != second.tolist() != list(range(50))


@pytest.mark.parametrize("balanced", [False, True])
def test_batches_depend_only_on_the_generator(balanced: bool) -> None:
    errors = np.linspace(0, 0.2, 40)

    def batches(seed: int) -> list[list[int]]:
        draws = np.random.default_rng(seed)
        endless = balanced_batches(errors, 0.1, 8, draws) if balanced else shuffled_batches(40, 8, draws)
        return [batch.tolist() for batch in islice(endless, 4)]

    assert batches(1) == batches(1) != batches(2)


def numbered_memory() -> tuple[Experience, Targets, ReplayMemory]:
    experience = Experience.empty(3, 2, 4)
    numbers = np.arange(6).reshape(3, 2)
    experience.states[:] = numbers[..., None, None, None]
    experience.actions[:] = numbers % 4
    targets = Targets(np.arange(24, dtype=np.float32).reshape(3, 2, 4), numbers.astype(np.float32))
    return experience, targets, ReplayMemory.of(experience, targets)


def test_memory_rows_belong_together() -> None:
    experience, targets, memory = numbered_memory()
    assert len(memory) == 6
    assert memory.states[:, 0, 0, 0].tolist() == memory.estimation_errors.tolist() == [0, 1, 2, 3, 4, 5]
    assert memory.actions.tolist() == [0, 1, 2, 3, 0, 1]
    assert np.array_equal(memory.q_values[3], targets.q_values[1, 1])
    assert np.shares_memory(memory.states.numpy(), experience.states)
    assert memory.on(torch.device("cpu")) is memory


def test_reestimated_replaces_the_first_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other steps keep their estimates, and the original experience is not changed."""
    monkeypatch.setattr(dqn.learning.replay, "_ESTIMATED_STATES", 4)  # two steps of two lanes
    experience, _, _ = numbered_memory()
    experience.q_values[:] = -1.0
    asked = []

    def estimate(states: np.ndarray) -> np.ndarray:
        asked.append(states[:, 0, 0, 0].tolist())
        return states[:, 0, 0, :1].astype(np.float32).repeat(4, axis=1) + np.arange(4, dtype=np.float32)

    found = reestimated(experience, 3, estimate)
    assert asked == [[0, 1, 2, 3], [4, 5]]
    assert found.q_values[2, 1].tolist() == [5, 6, 7, 8] and (experience.q_values == -1).all()
    assert reestimated(experience, 1, estimate).q_values[:, 0, 3].tolist() == [3, -1, -1]
    assert np.shares_memory(found.states, experience.states)


def test_cut_at_starts_truncates_restarted_lanes() -> None:
    experience = Experience.empty(4, 4, 3, with_states=False)
    experience.episode[2:, 1:] = 7  # lane 0 continued, 1 was restarted in mid-game, 2 terminated, 3 lost a life
    experience.terminated[1, 2] = experience.life_lost[1, 3] = experience.truncated[0, 0] = True
    cut = cut_at_starts(experience)
    assert np.argwhere(cut.truncated).tolist() == [[0, 0], [1, 1]]
    assert np.argwhere(experience.truncated).tolist() == [[0, 0]]


def test_batch_has_the_chosen_states_in_order() -> None:
    states, q_values, actions = numbered_memory()[2].batch(np.array([4, 1]), torch.device("cpu"))
    assert states.dtype == torch.uint8 and states.shape == (2, 105, 80, 2)
    assert states[:, 0, 0, 0].tolist() == [4, 1]
    assert q_values.tolist() == [[16, 17, 18, 19], [4, 5, 6, 7]]
    assert actions.dtype == torch.int64 and actions.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("free", "cached", "in_use", "fits"),
    [
        (2.0, 0.0, 0.0, True),
        (1.9, 0.0, 0.0, False),
        (0.5, 1.5, 0.0, True),  # as in a second cycle: the memory of the first is in torch's cache, unused
        (0.5, 2.5, 1.1, False),
    ],
)
def test_gpu_memory_in_torch_cache_counts_as_free(
    free: float, cached: float, in_use: float, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parameters are multiples of the number of bytes of the states."""
    memory = numbered_memory()[2]
    size = memory.states.nbytes
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (round(free * size), 9 * size))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: round(cached * size))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: round(in_use * size))
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, device: tensor.clone())
    assert (memory.on(torch.device("cuda")) is not memory) == fits


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
@pytest.mark.parametrize("fits", [True, False])
def test_memory_on_gpu_gives_the_same_batches(fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    device, memory = torch.device("cuda"), numbered_memory()[2]
    if not fits:
        monkeypatch.setattr(dqn.learning.replay, "_free_memory", lambda device: 1)
    moved = memory.on(device)
    assert moved.states.is_cuda == fits
    chosen = np.array([4, 1])
    for ours, theirs in zip(moved.batch(chosen, device), memory.batch(chosen, torch.device("cpu")), strict=True):
        assert ours.is_cuda and torch.equal(ours.cpu(), theirs)
