from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dqn.envs.observations import STATE_HEIGHT as HEIGHT
from dqn.envs.observations import STATE_WIDTH as WIDTH
from dqn.envs.observations import MotionTracer, gray_frames, small_frames


class NaiveTracer:
    """The formula of the tutorial for one lane, in floating point."""

    def __init__(self, frame: np.ndarray) -> None:
        self.last, self.trace = frame.astype(float), np.zeros(frame.shape)

    def advance(self, frame: np.ndarray) -> np.ndarray:
        motion = np.where(np.abs(frame - self.last) > 20, 255.0, 0.0)
        self.trace = np.clip(motion + 0.75 * self.trace, 0.0, 255.0)
        self.last = frame.astype(float)
        return np.stack([frame, self.trace.astype(np.uint8)], axis=-1)


def flicker(seed: int, steps: int, lanes: int, moving: float) -> np.ndarray:
    """Frames (steps, lanes, 105, 80) in which the share `moving` of the pixels changes at every step."""
    draws = np.random.default_rng(seed)
    frames = draws.integers(0, 256, (steps, lanes, HEIGHT, WIDTH), np.uint8)
    still = draws.random(frames.shape) > moving
    for step in range(1, steps):
        frames[step][still[step]] = frames[step - 1][still[step]]
    return frames


@settings(deadline=None, max_examples=15)
@given(
    seed=st.integers(0, 999),
    steps=st.integers(2, 30),
    lanes=st.integers(1, 3),
    moving=st.sampled_from([0.02, 0.2, 1.0]),
)
def test_motion_tracer_equals_naive_formula(seed: int, steps: int, lanes: int, moving: float) -> None:
    frames = flicker(seed, steps, lanes, moving)
    tracer = MotionTracer(lanes)
    tracer.reset(frames[0], np.ones(lanes, bool))
    naive = [NaiveTracer(frame) for frame in frames[0]]
    for step in range(1, steps):
        tracer.advance(frames[step])
        for lane in range(lanes):
            assert np.array_equal(tracer.states[lane], naive[lane].advance(frames[step, lane]))


def test_trace_fades_to_zero() -> None:
    frames = np.zeros((60, 1, HEIGHT, WIDTH), np.uint8)
    frames[1:] = 255
    tracer, naive = MotionTracer(1), NaiveTracer(frames[0, 0])
    tracer.reset(frames[0], np.array([True]))
    traces = []
    for frame in frames[1:]:
        tracer.advance(frame)
        assert np.array_equal(tracer.states[0], naive.advance(frame[0]))
        traces.append(int(tracer.states[0, 50, 40, 1]))
    assert traces[:5] == [255, 191, 143, 107, 80] and traces[-1] == 0


@pytest.mark.parametrize(
    ("before", "after", "trace"), [(100, 120, 0), (100, 121, 255), (120, 100, 0), (121, 100, 255), (0, 255, 255)]
)
def test_pixel_moves_above_20_levels(before: int, after: int, trace: int) -> None:
    tracer = MotionTracer(1)
    tracer.reset(np.full((1, HEIGHT, WIDTH), before, np.uint8), np.array([True]))
    tracer.advance(np.full((1, HEIGHT, WIDTH), after, np.uint8))
    assert (tracer.states[..., 0] == after).all() and (tracer.states[..., 1] == trace).all()


def test_reset_restarts_only_lanes_of_mask() -> None:
    frames = flicker(5, 6, 3, 0.3)
    tracer, undisturbed = MotionTracer(3), MotionTracer(3)
    for one in (tracer, undisturbed):
        one.reset(frames[0], np.ones(3, bool))
        for frame in frames[1:4]:
            one.advance(frame)
    tracer.reset(frames[4], np.array([False, True, False]))
    assert np.array_equal(tracer.states[1, ..., 0], frames[4, 1]) and not tracer.states[1, ..., 1].any()
    assert np.array_equal(tracer.states[[0, 2]], undisturbed.states[[0, 2]])
    fresh = NaiveTracer(frames[4, 1])
    tracer.advance(frames[5])
    undisturbed.advance(frames[5])
    assert np.array_equal(tracer.states[1], fresh.advance(frames[5, 1]))
    assert np.array_equal(tracer.states[[0, 2]], undisturbed.states[[0, 2]])


def test_motion_tracer_copies_its_frames() -> None:
    frames = flicker(6, 3, 1, 1.0)
    tracer, naive = MotionTracer(1), NaiveTracer(frames[0, 0])
    buffer = frames[0].copy()
    tracer.reset(buffer, np.array([True]))
    for frame in frames[1:]:
        buffer[:] = frame
        tracer.advance(buffer)
        assert np.array_equal(tracer.states[0], naive.advance(frame[0]))


@pytest.mark.parametrize(
    ("color", "gray"),
    [((255, 0, 0), 76), ((0, 255, 0), 149), ((0, 0, 255), 29), ((10, 20, 30), 18), ((0, 0, 0), 0)],
)
def test_gray_is_weighted_sum_of_colors(color: tuple[int, int, int], gray: int) -> None:
    screens = np.broadcast_to(np.array(color, np.uint8), (2, 4, 5, 3))
    found = gray_frames(screens)
    assert found.shape == (2, 4, 5) and found.dtype == np.uint8
    assert (found == gray).all()


def test_small_frames_keep_brightness_and_position() -> None:
    screens = np.zeros((2, 210, 160), np.uint8)
    screens[0, 105:, :] = 200
    screens[1] = 77
    small = small_frames(screens)
    assert small.shape == (2, HEIGHT, WIDTH) and small.dtype == np.uint8
    assert (small[0, :52] == 0).all() and (small[0, 54:] == 200).all()
    assert (small[1] == 77).all()


def test_small_frames_leave_small_frames_unchanged() -> None:
    frames = flicker(1, 1, 2, 1.0)[0]
    assert np.array_equal(small_frames(frames), frames)
