"""Every random draw comes from a key, never from a stream that something else may have advanced."""

from __future__ import annotations

import zlib

import numpy as np
import torch


def generator(seed: int, purpose: str, *indices: int) -> np.random.Generator:
    """The generator of the key (`seed`, `purpose`, `indices`): the same key, the same draws."""
    key = [seed, zlib.crc32(purpose.encode()), len(indices), *indices]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))


def torch_generator(seed: int, purpose: str, *indices: int) -> torch.Generator:
    """As `generator`, for torch on the CPU."""
    draw = int(generator(seed, purpose, *indices).integers(2**63))
    return torch.Generator().manual_seed(draw)


def noop_starts(seed: int, episodes: np.ndarray, most: int) -> np.ndarray:
    """With how many no-ops the numbered episodes of a run start, int64 from 0 to `most`, same shape."""
    draws = [generator(seed, "no-ops", int(episode)).integers(most + 1) if most else 0 for episode in episodes.ravel()]
    return np.array(draws, dtype=np.int64).reshape(episodes.shape)


def episode_seeds(seed: int, episodes: np.ndarray) -> np.ndarray:
    """The emulator's seeds for the numbered episodes of a run, int64 in [0, 2**31), same shape."""
    draws = [generator(seed, "episode", int(episode)).integers(2**31) for episode in episodes.ravel()]
    return np.array(draws, dtype=np.int64).reshape(episodes.shape)
