"""Random draws from keys.

Each draw comes from a generator that is made from a key, never from a stream that other code may have advanced.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch


def generator(seed: int, purpose: str, *indices: int) -> np.random.Generator:
    """A new generator for the key (`seed`, `purpose`, `indices`). The same key gives the same draws."""
    key = [seed, zlib.crc32(purpose.encode()), len(indices), *indices]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))


def torch_generator(seed: int, purpose: str, *indices: int) -> torch.Generator:
    """As `generator`, but a torch generator on the CPU."""
    draw = int(generator(seed, purpose, *indices).integers(2**63))
    return torch.Generator().manual_seed(draw)


def noop_starts(seed: int, episodes: np.ndarray, most: int) -> np.ndarray:
    """Number of no-ops at the start of each of the numbered `episodes` of a run.

    Args:
        seed: seed of the run.
        episodes: numbers of episodes, int64 of any shape.
        most: highest number of no-ops.

    Returns:
        int64 from 0 to `most`, in the shape of `episodes`.
    """
    draws = [generator(seed, "no-ops", int(episode)).integers(most + 1) if most else 0 for episode in episodes.ravel()]
    return np.array(draws, dtype=np.int64).reshape(episodes.shape)


def episode_seeds(seed: int, episodes: np.ndarray) -> np.ndarray:
    """Seed of the emulator for each of the numbered `episodes` of a run: int64 in [0, 2**31), in the same shape."""
    draws = [generator(seed, "episode", int(episode)).integers(2**31) for episode in episodes.ravel()]
    return np.array(draws, dtype=np.int64).reshape(episodes.shape)
