"""An episode for the eye: the screen in colour, the motion trace, and what the network thinks of each action."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
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

WIDTH, HEIGHT = 1040, 480  # of a picture, in pixels; both even, as video codecs want
FRAMES_PER_SECOND = 15  # of the screen's 60, an agent sees every fourth

_PAPER, _INK, _SOFT, _BAR, _CHOSEN = "#ffffff", "#222222", "#8a8a8a", "#a9c4dd", "#d9622b"
_LEFT, _TOP, _PICTURE = 20, 40, (320, 420)  # where pictures begin, and their size


@dataclass(frozen=True)
class Shot:
    """One state of an episode, and what was done in it."""

    screen: np.ndarray  # (height, width, 3) uint8: the emulator's own picture
    motion: np.ndarray  # (105, 80) uint8: the motion trace, or by how much stacked frames differ
    q_values: np.ndarray  # (A,) float32
    action: int
    score: float  # before the action
    step: int


def record_episode(
    estimate: Callable[[np.ndarray], np.ndarray], protocol: Protocol, config: TrainConfig
) -> Generator[Shot, None, None]:
    """Play one complete episode, epsilon-greedy: the protocol's, were it of one episode.

    A second game in colour takes the same seed and the same actions.

    Args:
        estimate: states (N, 105, 80, C) uint8 to Q-values (N, A) float32.
        protocol: the game, the policy's epsilon and the seed.
        config: of the agent: how its games are.
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
    """The colour screens of one episode."""

    def __init__(self, env: Any, seed: int) -> None:
        self._env = env
        observation, _ = self._env.reset(seed=seed)
        self._vector = isinstance(self._env, gymnasium.vector.VectorEnv)
        self.screen = self._picture(observation)

    def step(self, action: int) -> None:
        """Take an action."""
        observation, *_ = self._env.step(np.array([action]) if self._vector else action)
        self.screen = self._picture(observation)

    def close(self) -> None:
        """End the game."""
        self._env.close()

    def _picture(self, observation: np.ndarray) -> np.ndarray:
        return observation.reshape(observation.shape[-3:]).copy()


def draw_shot(shot: Shot, action_names: tuple[str, ...], span: tuple[float, float]) -> np.ndarray:
    """A picture (480, 1040, 3) uint8 of a shot; bars reach over the Q-values in `span`."""
    page = Image.new("RGB", (WIDTH, HEIGHT), _PAPER)
    pen = ImageDraw.Draw(page)
    for place, (title, picture) in enumerate((("screen", shot.screen), ("motion", shot.motion))):
        left = _LEFT + place * (_PICTURE[0] + 20)
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


def _font(size: int) -> Any:
    return ImageFont.load_default(size)
