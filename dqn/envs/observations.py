"""Preprocessing of screens to states: a small gray frame with a motion trace, or stacked frames."""

from __future__ import annotations

import numpy as np
import torch
from numba import njit

STATE_HEIGHT, STATE_WIDTH = 105, 80

MOTION_THRESHOLD = np.uint8(20)
TRACE_DECAY = 0.75

_LUMA = np.array([0.2990, 0.5870, 0.1140])
_EMULATOR_LUMA = np.array([0.2989, 0.5870, 0.1140])
# The trace of a pixel is 255 when the pixel moves, and 0.75 times the previous trace otherwise. So it depends only
# on the number of steps since the pixel moved, and is 0 in 8 bits after 20 steps.
_TRACE_BY_AGE = np.trunc(255 * TRACE_DECAY ** np.arange(21)).astype(np.uint8)
_STILL = np.uint8(len(_TRACE_BY_AGE) - 1)
assert _TRACE_BY_AGE[_STILL] == 0


def gray_frames(screens: np.ndarray) -> np.ndarray:
    """Convert color screens (..., 3) uint8 to gray (...) uint8, by 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601)."""
    assert screens.dtype == np.uint8 and screens.shape[-1] == 3
    gray: np.ndarray = (screens @ _LUMA).astype(np.uint8)
    return gray


def small_frames(frames: np.ndarray) -> np.ndarray:
    """Resize gray screens (N, height, width) uint8 to frames (N, 105, 80) uint8, bilinear with antialiasing."""
    assert frames.dtype == np.uint8 and frames.ndim == 3
    if frames.shape[1:] == (STATE_HEIGHT, STATE_WIDTH):
        return frames
    small = torch.nn.functional.interpolate(
        torch.from_numpy(frames)[:, None],
        size=(STATE_HEIGHT, STATE_WIDTH),
        mode="bilinear",
        antialias=True,
    )
    return small[:, 0].numpy()


def emulator_gray(screens: np.ndarray) -> np.ndarray:
    """Convert color screens (..., 3) uint8 of the emulator to its own gray (...) uint8.

    Source: `ColourPalette::setPalette` of the Arcade Learning Environment.
    """
    assert screens.dtype == np.uint8 and screens.shape[-1] == 3
    gray: np.ndarray = np.rint(screens @ _EMULATOR_LUMA).astype(np.uint8)
    return gray


def area_frames(screens: np.ndarray) -> np.ndarray:
    """Resize gray screens (N, height, width) uint8 to frames (N, 105, 80) uint8 by the means of areas.

    The frames are those of ale-py's vector environment, to the bit.

    Source: `INTER_AREA` of OpenCV's `resize`, which ale-py calls.
    """
    assert screens.dtype == np.uint8 and screens.ndim == 3
    count, height, width = screens.shape
    if height % STATE_HEIGHT == 0 and width % STATE_WIDTH == 0:
        tall, wide = height // STATE_HEIGHT, width // STATE_WIDTH
        areas = screens.reshape(count, STATE_HEIGHT, tall, STATE_WIDTH, wide).sum((2, 4), dtype=np.int64)
        half_up: np.ndarray = ((areas + tall * wide // 2) // (tall * wide)).astype(np.uint8)
        return half_up
    columns = _weighted_sum(screens.astype(np.float32).transpose(2, 0, 1), STATE_WIDTH)
    means = _weighted_sum(columns.transpose(2, 1, 0), STATE_HEIGHT)
    half_even: np.ndarray = np.rint(means.transpose(1, 0, 2)).astype(np.uint8)
    return half_even


def _weighted_sum(rows: np.ndarray, count: int) -> np.ndarray:
    """Means of `count` areas of the first axis of `rows` float32, whose terms are added in order."""
    scale = len(rows) / count
    first = np.arange(count) * scale
    size = np.minimum(scale, len(rows) - first)
    last = first + size
    total = np.zeros((count, *rows.shape[1:]), np.float32)
    for term in range(int(np.ceil(scale)) + 1):
        row = np.floor(first).astype(np.int64) + term
        covered = np.minimum(last, row + 1) - np.maximum(first, row)
        weights = np.where(covered > 1e-3, covered / size, 0).astype(np.float32)
        total += weights.reshape(-1, *[1] * (rows.ndim - 1)) * rows[np.minimum(row, len(rows) - 1)]
    return total


class MotionTracer:
    """States of L lanes, each of which is a frame and its motion trace.

    A pixel moves when it changes by more than 20 of 255 levels from one frame to the next.
    Source: the motion tracer of the tutorial, here in exact 8-bit arithmetic.

    Attributes:
        states: (L, 105, 80, 2) uint8, updated in place.
    """

    def __init__(self, lanes: int) -> None:
        self.states = np.zeros((lanes, STATE_HEIGHT, STATE_WIDTH, 2), np.uint8)
        self._age = np.full((lanes, STATE_HEIGHT, STATE_WIDTH), _STILL)
        self._last = np.zeros_like(self._age)

    def reset(self, frames: np.ndarray, mask: np.ndarray) -> None:
        """Restart the lanes in `mask` (L,) bool from their frame in `frames` (L, 105, 80) uint8, without a trace."""
        self._last[mask] = frames[mask]
        self._age[mask] = _STILL
        self.states[mask, ..., 0] = frames[mask]
        self.states[mask, ..., 1] = 0

    def advance(self, frames: np.ndarray) -> None:
        """Add the next frame of every lane, (L, 105, 80) uint8."""
        assert frames.dtype == np.uint8 and frames.shape == self._last.shape
        _advance(frames.reshape(-1), self._last.reshape(-1), self._age.reshape(-1), self.states.reshape(-1, 2))


class FrameStack:
    """States of L lanes, each of which consists of the last frames, newest first.

    At the start of an episode, all of them are its first frame.
    Source: Mnih et al. (2015), where the missing frames are empty instead.

    Attributes:
        states: (L, 105, 80, frames) uint8, updated in place.
    """

    def __init__(self, lanes: int, frames: int) -> None:
        self.states = np.zeros((lanes, STATE_HEIGHT, STATE_WIDTH, frames), np.uint8)

    def reset(self, frames: np.ndarray, mask: np.ndarray) -> None:
        """Restart the lanes in `mask` (L,) bool from their frame in `frames` (L, 105, 80) uint8."""
        self.states[mask] = frames[mask][..., None]

    def advance(self, frames: np.ndarray) -> None:
        """Add the next frame of every lane, (L, 105, 80) uint8."""
        assert frames.dtype == np.uint8 and frames.shape == self.states.shape[:3]
        self.states[..., 1:] = self.states[..., :-1]
        self.states[..., 0] = frames


def motion(states: np.ndarray) -> np.ndarray:
    """Motion (..., 105, 80) in states (..., 105, 80, C): the trace, or the range of each pixel of stacked frames."""
    if states.shape[-1] == 2:
        return states[..., 1]
    spread: np.ndarray = np.ptp(states, axis=-1)
    return spread


def channel_names(channels: int) -> list[str]:
    """Names of the channels of a state."""
    return ["frame", "motion trace"] if channels == 2 else [f"frame t - {age}" for age in range(channels)]


@njit(cache=True, nogil=True)
def _advance(frames: np.ndarray, last: np.ndarray, age: np.ndarray, states: np.ndarray) -> None:
    # Two loops, so that the compiler can vectorize the first one.
    for pixel in range(frames.size):
        before, after = last[pixel], frames[pixel]
        older = min(age[pixel], _STILL - np.uint8(1)) + np.uint8(1)
        moved = max(before, after) - min(before, after) > MOTION_THRESHOLD
        age[pixel] = np.uint8(0) if moved else np.uint8(older)
        last[pixel] = after
    for pixel in range(frames.size):
        states[pixel, 0] = frames[pixel]
        states[pixel, 1] = _TRACE_BY_AGE[age[pixel]]
