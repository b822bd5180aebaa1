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
        (1, 399, 128, (1, 127)),  # exactly one high: the tutorial crashes
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
def test_places_in_a_batch(high: int, low: int, batch_size: int, sizes: tuple[int, int]) -> None:
    assert balanced_sizes(high, low, batch_size) == sizes


@given(high=st.integers(0, 300), low=st.integers(0, 300), batch_size=st.integers(1, 400))
def test_places_add_up_fit_their_groups_and_favour_high_errors(high: int, low: int, batch_size: int) -> None:
    if high + low == 0:
        return
    high_size, low_size = balanced_sizes(high, low, batch_size)
    places = min(batch_size, high + low)
    assert high_size + low_size == places
    assert 0 <= high_size <= high and 0 <= low_size <= low
    assert high_size >= min(high, int(places * max(high / (high + low), 0.5)))
    if low_size < low:  # low errors left over: the high ones have no more than their share
        assert high_size <= max(places * high / (high + low), places / 2)


@settings(deadline=None)
@given(
    errors=st.lists(st.sampled_from([0.0, 0.09, 0.11, 3.0]), min_size=1, max_size=60),
    batch_size=st.integers(1, 80),
    seed=st.integers(0, 99),
)
def test_balanced_batches_have_the_promised_places_without_replacement(
    errors: list[float], batch_size: int, seed: int
) -> None:
    table = np.array(errors, np.float32)
    high = int((table > 0.1).sum())
    sizes = balanced_sizes(high, len(table) - high, batch_size)
    for batch in islice(balanced_batches(table, 0.1, batch_size, np.random.default_rng(seed)), 3):
        assert len(set(batch.tolist())) == len(batch) == sum(sizes)
        assert (table[batch] > 0.1).sum() == sizes[0]


def test_balanced_batches_reach_every_state() -> None:
    errors = np.array([0, 1] * 10)
    batches = islice(balanced_batches(errors, 0.1, 4, np.random.default_rng(0)), 100)
    assert {int(index) for batch in batches for index in batch} == set(range(20))


def test_one_high_error_is_in_every_batch() -> None:
    errors = np.zeros(50)
    errors[17] = 1
    for batch in islice(balanced_batches(errors, 0.1, 8, np.random.default_rng(0)), 5):
        assert 17 in batch and len(batch) == 8


@settings(deadline=None)
@given(states=st.integers(1, 60), batch_size=st.integers(1, 80), seed=st.integers(0, 99))
def test_shuffled_epochs_show_states_once_and_leave_only_a_rest_out(states: int, batch_size: int, seed: int) -> None:
    size = min(batch_size, states)
    per_epoch = states // size
    batches = list(islice(shuffled_batches(states, batch_size, np.random.default_rng(seed)), 2 * per_epoch))
    assert all(len(batch) == size for batch in batches)
    for epoch in (batches[:per_epoch], batches[per_epoch:]):
        shown = np.concatenate(epoch)
        assert len(set(shown.tolist())) == len(shown) == per_epoch * size
        assert shown.min() >= 0 and shown.max() < states


def test_epochs_are_shuffled_anew() -> None:
    first, second = islice(shuffled_batches(50, 50, np.random.default_rng(0)), 2)
    assert first.tolist() != second.tolist() != list(range(50))


@pytest.mark.parametrize("balanced", [False, True])
def test_same_draws_same_batches(balanced: bool) -> None:
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


def test_memory_keeps_states_targets_actions_and_errors_together() -> None:
    experience, targets, memory = numbered_memory()
    assert len(memory) == 6
    assert memory.states[:, 0, 0, 0].tolist() == memory.estimation_errors.tolist() == [0, 1, 2, 3, 4, 5]
    assert memory.actions.tolist() == [0, 1, 2, 3, 0, 1]
    assert np.array_equal(memory.q_values[3], targets.q_values[1, 1])
    assert np.shares_memory(memory.states.numpy(), experience.states)
    assert memory.on(torch.device("cpu")) is memory


def test_reestimated_experience_has_present_estimates_for_its_first_steps(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_lanes_are_cut_off_where_they_went_on_in_midgame() -> None:
    experience = Experience.empty(4, 4, 3, with_states=False)
    experience.episode[2:, 1:] = 7  # lane 0 plays on, 1 started in mid-game, 2 ended, 3 lost a life
    experience.terminated[1, 2] = experience.life_lost[1, 3] = experience.truncated[0, 0] = True
    cut = cut_at_starts(experience)
    assert np.argwhere(cut.truncated).tolist() == [[0, 0], [1, 1]]
    assert np.argwhere(experience.truncated).tolist() == [[0, 0]]


def test_batch_holds_the_chosen_states_in_their_order() -> None:
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
        (0.5, 1.5, 0.0, True),  # as in a second cycle: the first one's memory is in torch's cache, unused
        (0.5, 2.5, 1.1, False),
    ],
)
def test_gpu_memory_in_the_cache_of_torch_is_free(
    free: float, cached: float, in_use: float, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes are given as multiples of those of the states."""
    memory = numbered_memory()[2]
    size = memory.states.nbytes
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (round(free * size), 9 * size))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: round(cached * size))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: round(in_use * size))
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, device: tensor.clone())
    assert (memory.on(torch.device("cuda")) is not memory) == fits


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("fits", [True, False])
def test_memory_moves_to_the_gpu_where_it_fits_and_gives_the_same_batches(
    fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, memory = torch.device("cuda"), numbered_memory()[2]
    if not fits:
        monkeypatch.setattr(dqn.learning.replay, "_free_memory", lambda device: 1)
    moved = memory.on(device)
    assert moved.states.is_cuda == fits
    chosen = np.array([4, 1])
    for ours, theirs in zip(moved.batch(chosen, device), memory.batch(chosen, torch.device("cpu")), strict=True):
        assert ours.is_cuda and torch.equal(ours.cpu(), theirs)
