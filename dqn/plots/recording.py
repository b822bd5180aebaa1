"""Recordings of episodes: the color screen, the motion trace and the Q-values of every step."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import cache
from typing import Any

import gymnasium
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dqn.config import TrainConfig
from dqn.envs.backends import open_screens
from dqn.envs.histories import first_histories
from dqn.envs.lanes import Lanes
from dqn.envs.observations import motion
from dqn.envs.policy import epsilon_greedy
from dqn.evaluation.evaluation import Protocol, game_settings, policy_draws
from dqn.randomness import episode_seeds

WIDTH, HEIGHT = 1040, 480  # pixels of a picture; both are even, as video codecs require
FRAMES_PER_SECOND = 15  # steps per second; the console shows 60 frames per second, and a step lasts 4

_PAPER, _INK, _SOFT, _BAR, _CHOSEN = "#ffffff", "#222222", "#8a8a8a", "#a9c4dd", "#d9622b"
_LEFT, _TOP, _PICTURE = 20, 40, (320, 420)  # margins, and the size of the screen and the motion trace, in pixels


@dataclass(frozen=True)
class Shot:
    """One step of an episode."""

    screen: np.ndarray  # (height, width, 3) uint8: the emulator's color screen
    motion: np.ndarray  # (105, 80) uint8: the motion trace, or the range of each pixel of stacked frames
    q_values: np.ndarray  # (A,) float32
    action: int
    score: float  # before the action
    step: int


def record_episode(
    estimate: Callable[[np.ndarray], np.ndarray], protocol: Protocol, config: TrainConfig
) -> Generator[Shot, None, None]:
    """Play one complete episode with an epsilon-greedy policy, and yield its steps.

    It is the episode that an evaluation of one episode plays. The color screens are those of a second game, which
    has the same seed and takes the same actions.

    Args:
        estimate: maps states (N, 105, 80, C) uint8 to Q-values (N, A) float32.
        protocol: game, epsilon and seed; `episodes` is ignored.
        config: of the agent, for the settings of its games.

    Raises:
        ValueError: the game of `protocol` is unknown.
    """
    settings = game_settings(protocol, config)
    lanes = Lanes(settings, first_histories(1), threads=1)
    screens = _Screens(open_screens(settings), int(episode_seeds(settings.seed, np.zeros(1, np.int64))[0]))
    draws = policy_draws(protocol)
    score, step = 0.0, 0
    try:
        while not lanes.episodes.any():
            q_values = estimate(lanes.states)
            action = lanes.with_noops(epsilon_greedy(q_values, protocol.epsilon, draws))
            yield Shot(screens.screen, motion(lanes.states[0]).copy(), q_values[0], int(action[0]), score, step)
            outcome = lanes.step(action)
            if not (outcome.terminated | outcome.truncated).any():
                screens.step(int(action[0]))
            score, step = score + float(outcome.rewards[0]), step + 1
    finally:
        lanes.close()
        screens.close()


class _Screens:
    """The color screens of one episode."""

    def __init__(self, env: Any, seed: int) -> None:
        self._env = env
        observation, _ = self._env.reset(seed=seed)
        self._vector = isinstance(self._env, gymnasium.vector.VectorEnv)
        self.screen = self._picture(observation)

    def step(self, action: int) -> None:
        """Take an action and update `screen`."""
        observation, *_ = self._env.step(np.array([action]) if self._vector else action)
        self.screen = self._picture(observation)

    def close(self) -> None:
        """Close the game."""
        self._env.close()

    def _picture(self, observation: np.ndarray) -> np.ndarray:
        return observation.reshape(observation.shape[-3:]).copy()


def draw_shot(shot: Shot, action_names: tuple[str, ...], span: tuple[float, float]) -> np.ndarray:
    """Draw a picture (480, 1040, 3) uint8 of a step; `span` is the range of Q-values that the bars show."""
    page = Image.new("RGB", (WIDTH, HEIGHT), _PAPER)
    pen = ImageDraw.Draw(page)
    for column, (title, picture) in enumerate((("screen", shot.screen), ("motion", shot.motion))):
        left = _LEFT + column * (_PICTURE[0] + 20)
        pen.text((left, 12), title, _SOFT, _font(16))
        page.paste(Image.fromarray(picture).convert("RGB").resize(_PICTURE, Image.Resampling.NEAREST), (left, _TOP))
    left = _LEFT + 2 * (_PICTURE[0] + 20)
    pen.text((left, 12), f"score {shot.score:g}", _INK, _font(20))
    pen.text((WIDTH - 20, 16), f"step {shot.step}", _SOFT, _font(14), anchor="ra")
    _draw_bars(pen, left, shot, action_names, span)
    return np.asarray(page)


def _draw_bars(
    pen: ImageDraw.ImageDraw, left: int, shot: Shot, action_names: tuple[str, ...], span: tuple[float, float]
) -> None:
    low, high = span
    row = min(36.0, (_PICTURE[1] - 30) / len(action_names))
    size = max(8, min(14, int(row * 0.6)))
    start = left + 8 + int(max(pen.textlength(name, _font(size)) for name in action_names))
    full = WIDTH - 80 - start
    pen.text((left, _TOP), "Q-value of each action", _SOFT, _font(14))
    for number, (name, value) in enumerate(zip(action_names, shot.q_values, strict=True)):
        top = _TOP + 30 + number * row
        color = _CHOSEN if number == shot.action else _BAR
        length = full * float(np.clip((value - low) / max(high - low, 1e-9), 0.01, 1))
        pen.text((left, top + row * 0.4), name, _INK, _font(size), anchor="lm")
        pen.rectangle((start, top, start + length, top + row * 0.8), color)
        pen.text((WIDTH - 20, top + row * 0.4), f"{value:.3f}", _INK, _font(size), anchor="rm")


@cache  # because a font is parsed each time
def _font(size: int) -> Any:
    return ImageFont.load_default(size)
