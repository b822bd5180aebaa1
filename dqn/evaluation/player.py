"""Actions of an agent in a plain gymnasium environment, frame by frame."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from dqn.config import TrainConfig
from dqn.envs.games import GameSettings
from dqn.envs.lanes import NOOP
from dqn.envs.observations import (
    STATE_HEIGHT,
    STATE_WIDTH,
    FrameStack,
    MotionTracer,
    area_frames,
    emulator_gray,
    small_frames,
)
from dqn.envs.policy import epsilon_greedy
from dqn.evaluation.evaluation import Protocol, game_settings, policy_draws
from dqn.randomness import noop_starts


class Player:
    """Chooses an action for each screen of an episode, as an evaluation of one episode does.

    The states are those of `Lanes`, to the bit, if the environment yields the same screens.
    """

    def __init__(self, estimate: Callable[[np.ndarray], np.ndarray], config: TrainConfig, protocol: Protocol) -> None:
        """Prepare the first episode.

        Args:
            estimate: maps states (1, 105, 80, C) uint8 to Q-values (1, A) float32.
            config: of the agent, for the settings of its games.
            protocol: epsilon and seed of the first episode; `episodes` is ignored.
        """
        self._estimate = estimate
        self._config = config
        self._tracer: FrameStack | MotionTracer | None = None
        self._begin(protocol)

    def next_episode(self, seed: int | None = None, epsilon: float | None = None) -> None:
        """Begin another episode, by default with the next seed and the same epsilon.

        The seed stays the same if the episode before had no screen yet.

        Raises:
            ValueError: an argument is out of range.
        """
        following = self._protocol.seed + (self._tracer is not None)
        protocol = replace(self._protocol, seed=following if seed is None else seed)
        self._begin(protocol if epsilon is None else replace(protocol, epsilon=epsilon))

    def act(self, screen: np.ndarray) -> int:
        """The action for the next screen of the episode: (height, width, 3) uint8 in color, or (height, width) in gray.

        Raises:
            ValueError: `screen` has another shape or type.
        """
        frame = self._frame(screen)
        if self._tracer is None:
            stacked = self._settings.stacked_frames
            self._tracer = FrameStack(1, stacked) if stacked else MotionTracer(1)
            self._tracer.reset(frame, np.ones(1, bool))
        else:
            self._tracer.advance(frame)
        action = int(epsilon_greedy(self._estimate(self._tracer.states), self._protocol.epsilon, self._draws)[0])
        self._noops_left -= 1
        return NOOP if self._noops_left >= 0 else action

    def _begin(self, protocol: Protocol) -> None:
        self._protocol = protocol
        self._settings: GameSettings = game_settings(protocol, self._config)
        self._draws = policy_draws(protocol)
        self._noops_left = int(noop_starts(self._settings.seed, np.zeros(1, np.int64), self._settings.noop_max)[0])
        self._tracer = None

    def _frame(self, screen: np.ndarray) -> np.ndarray:
        """The frame (1, 105, 80) uint8 of a screen."""
        screen = np.asarray(screen)
        color = screen.ndim == 3 and screen.shape[-1] == 3
        height, width = (*screen.shape[:2], 0, 0)[:2]
        if screen.dtype != np.uint8 or not (color or screen.ndim == 2) or height < STATE_HEIGHT or width < STATE_WIDTH:
            raise ValueError(
                f"an observation has the shape {screen.shape} and the type {screen.dtype}; it must be a screen of the "
                "game, (height, width, 3) or (height, width) uint8, as gymnasium.make yields it"
            )
        gray = emulator_gray(screen) if color else screen
        return area_frames(gray[None]) if self._settings.native else small_frames(gray[None])
