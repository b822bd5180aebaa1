from __future__ import annotations

import numpy as np
import pytest
import torch

from dqn.randomness import episode_seeds, generator, torch_generator

KEYS = [
    (0, "policy"),
    (0, "policy", 0),
    (0, "policy", 1),
    (1, "policy", 0),
    (0, "batches", 0),
    (2**31, "policy", 0),
    (2**32, "policy", 0),
    (2**63 - 1, "policy", 0),
    (0, "live", 0, 1),
    (0, "live", 1, 0),
    (0, "live", 1, 1),
]


def test_same_key_gives_same_draws() -> None:
    for key in KEYS:
        assert generator(*key).random(5).tolist() == generator(*key).random(5).tolist()
        assert torch.equal(
            torch.rand(5, generator=torch_generator(*key)), torch.rand(5, generator=torch_generator(*key))
        )


def test_different_keys_give_different_draws() -> None:
    assert len({tuple(generator(*key).random(3)) for key in KEYS}) == len(KEYS)
    assert len({tuple(torch.rand(3, generator=torch_generator(*key)).tolist()) for key in KEYS}) == len(KEYS)


def test_draws_are_fixed() -> None:
    # Other draws would change how every stored run continues.
    assert generator(7, "policy", 3).integers(1000, size=5).tolist() == [886, 70, 413, 289, 238]
    assert episode_seeds(7, np.array([0, 1, 1000])).tolist() == [1514770055, 1339945205, 111179635]


def test_global_generators_are_not_advanced() -> None:
    before = np.random.get_state()[1].tolist(), torch.random.get_rng_state()  # noqa: NPY002
    generator(0, "policy").random(5)
    torch.rand(5, generator=torch_generator(0, "weights"))
    assert np.random.get_state()[1].tolist() == before[0]  # noqa: NPY002
    assert torch.equal(torch.random.get_rng_state(), before[1])


@pytest.mark.parametrize("shape", [(0,), (5,), (2, 3)])
def test_episode_seeds_have_shape_and_range(shape: tuple[int, ...]) -> None:
    seeds = episode_seeds(3, np.arange(np.prod(shape)).reshape(shape))
    assert seeds.shape == shape and seeds.dtype == np.int64
    assert ((seeds >= 0) & (seeds < 2**31)).all()


def test_episode_seed_depends_on_run_and_episode() -> None:
    seeds = episode_seeds(3, np.arange(200))
    assert len(set(seeds.tolist())) == 200
    assert episode_seeds(3, np.array([17, 3])).tolist() == [seeds[17], seeds[3]]
    assert not (episode_seeds(4, np.arange(200)) == seeds).any()
