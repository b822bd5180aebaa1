"""Stacked frames as states: in lanes, networks, figures and recordings."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch
from torch import nn

from dqn.config import make_config
from dqn.envs.experience import Experience, Targets
from dqn.envs.games import GameSettings
from dqn.envs.histories import advance, first_histories
from dqn.envs.lanes import Lanes, open_lanes
from dqn.envs.observations import FrameStack, channel_names, motion
from dqn.evaluation.evaluation import Protocol
from dqn.learning.networks import make_network
from dqn.plots.figures import highlight_strip, sweep_figure
from dqn.plots.highlights import find_highlights
from dqn.plots.network_figures import convolution_outputs, outputs_figure, weights_figure
from dqn.plots.recording import record_episode

CONFIG = make_config("fast", {"frame_stack": True, "lanes": 2, "lane_groups": 1, "threads": 1, "network": "small"})


def frames_of(*levels: int) -> np.ndarray:
    return np.stack([np.full((105, 80), level, np.uint8) for level in levels])


def levels_of(states: np.ndarray) -> list[list[int]]:
    assert (states == states[:, :1, :1]).all()
    levels: list[list[int]] = states[:, 0, 0].tolist()
    return levels


def test_frame_stack_holds_newest_frame_first() -> None:
    """At the start of an episode, the first frame is repeated."""
    stack = FrameStack(2, 4)
    stack.reset(frames_of(1, 11), np.array([True, True]))
    assert levels_of(stack.states) == [[1, 1, 1, 1], [11, 11, 11, 11]]
    stack.advance(frames_of(2, 12))
    stack.advance(frames_of(3, 13))
    assert levels_of(stack.states) == [[3, 2, 1, 1], [13, 12, 11, 11]]
    stack.reset(frames_of(50, 60), np.array([False, True]))
    for level in (4, 5):
        stack.advance(frames_of(level, 10 + level))
    assert levels_of(stack.states) == [[5, 4, 3, 2], [15, 14, 60, 60]]
    assert motion(stack.states)[:, 0, 0].tolist() == [3, 46]


def played(steps: int) -> Experience:
    (lanes,) = open_lanes(CONFIG, first_histories(2))
    experience = Experience.empty(steps, 2, 4, channels=CONFIG.state_channels)
    draws = np.random.default_rng(0)
    for step in range(steps):
        experience.states[step] = lanes.states
        experience.actions[step] = draws.integers(4, size=2)
        outcome = lanes.step(experience.actions[step].astype(np.int64))
        for name in ("rewards", "life_lost", "terminated", "truncated"):
            getattr(experience, name)[step] = getattr(outcome, name)
    lanes.close()
    experience.q_values[:] = draws.random(experience.q_values.shape)
    return experience


def test_lanes_with_stacked_frames_are_restored() -> None:
    """Stacked frames are the frames that the motion tracer gets, and restored lanes continue with the same states."""
    experience = played(240)
    assert experience.states.shape == (240, 2, 105, 80, 4)
    unstacked = CONFIG.model_copy(update={"frame_stack": False})
    traced = Lanes(GameSettings.of(unstacked), first_histories(2), threads=1)
    for step in range(240):
        assert np.array_equal(experience.states[step, ..., 0], traced.states[..., 0])
        traced.step(experience.actions[step].astype(np.int64))
    traced.close()
    ended = experience.terminated | experience.truncated
    assert ended.any()
    for step, lane in zip(*np.nonzero(~ended[:-1]), strict=True):
        assert np.array_equal(experience.states[step + 1, lane, ..., 1:], experience.states[step, lane, ..., :-1])
    rows = {f.name: slice(220) if f.name != "bootstrap_q_values" else slice(None) for f in fields(experience)}
    part = Experience(**{name: getattr(experience, name)[where] for name, where in rows.items()})
    histories, _ = advance(first_histories(2), part, 0)
    (restored,) = open_lanes(CONFIG, histories)
    for step in range(220, 230):
        assert np.array_equal(restored.states, experience.states[step])
        restored.step(experience.actions[step].astype(np.int64))
    restored.close()


@pytest.mark.parametrize("name", ["nature", "nips", "small", "residual"])
def test_first_convolution_takes_four_channels(name: str) -> None:
    network = make_network(CONFIG.model_copy(update={"network": name}), 3)
    states = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 105, 80, 4), np.uint8))
    pixels, first = states.permute(0, 3, 1, 2), network.convolutions[0]
    assert isinstance(first, nn.Conv2d) and first.in_channels == 4
    with torch.no_grad():
        plain = nn.functional.conv2d(pixels / 255, first.weight, first.bias, stride=first.stride)
        torch.testing.assert_close(first(pixels), plain, rtol=1e-4, atol=1e-5)
        assert network(states).shape == (2, 3)


def test_figures_show_stacked_frames() -> None:
    experience = played(60)
    targets = Targets(experience.q_values + 0.1, np.full((60, 2), 0.1, np.float32))
    (highlight, *_), _ = find_highlights(experience)
    strip = highlight_strip(experience, ["A", "B", "C", "D"], highlight, "Breakout")
    frame, moved = (axes.images[0].get_array() for axes in strip.axes[:2])
    state = experience.states[highlight.steps.start, highlight.lane]
    assert np.array_equal(frame, state[..., 0]) and np.array_equal(moved, motion(state))
    sweep_figure(experience, targets, highlight, "Breakout", 0.99)
    network = make_network(CONFIG, 4)
    outputs_figure(state, convolution_outputs(network, state)[1], 1, 3, "Breakout")
    assert "frame t - 3" in weights_figure(network, 1, 3, "Breakout").get_suptitle()
    assert channel_names(2) == ["frame", "motion trace"]


def test_recording_shows_motion_of_stacked_frames() -> None:
    protocol = Protocol("ALE/Breakout-v5", 1, 1.0, seed=1)
    shots = list(record_episode(lambda states: np.zeros((len(states), 4), np.float32), protocol, CONFIG))
    assert len(shots) > 50 and all(shot.motion.shape == (105, 80) for shot in shots)
    assert max(shot.motion.max() for shot in shots) > 100
