"""Show an agent that plays, in a window."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import replace
from typing import Any

from PIL import Image

from dqn.plots.recording import FRAMES_PER_SECOND, HEIGHT, WIDTH, draw_shot, record_episode
from dqn.threads import torch_threads
from flows.commands.agents import Agent


def play_in_window(
    agent: Agent,
    epsilon: float | None = None,
    game: str | None = None,
    seed: int = 0,
    on_episode: Callable[[float, int], None] = lambda score, steps: None,
) -> None:
    """Play complete episodes in a window until it is closed. Each episode has the next seed.

    Args:
        agent: the agent that plays.
        epsilon: probability of a random action; the run's `evaluation_epsilon` by default.
        game: another game with the same actions.
        seed: seed of the first episode.
        on_episode: called with the score and the number of steps of each episode that ends.

    Raises:
        ValueError: an argument is out of range.
        OSError: there is no display.
    """
    protocol = agent.protocol(1, epsilon, game, seed)
    window = _Window(agent.name)
    with torch_threads(1), closing(window):
        while True:
            low, high = float("inf"), float("-inf")
            shots = record_episode(agent.learner.estimate, protocol, agent.metadata.config)
            with closing(shots):
                for shot in shots:
                    low, high = min(low, float(shot.q_values.min())), max(high, float(shot.q_values.max()))
                    picture = draw_shot(shot, agent.metadata.action_names, (low, high))
                    if not window.show(Image.fromarray(picture)):
                        return
            on_episode(shot.score, shot.step + 1)
            protocol = replace(protocol, seed=protocol.seed + 1)


class _Window:
    """A window that shows `FRAMES_PER_SECOND` pictures per second."""

    def __init__(self, title: str) -> None:
        instead = f"use `dqn record {title} -o episode.mp4` to make a video instead"
        try:
            import tkinter
        except ImportError:
            raise OSError(f"cannot open a window because this Python has no tkinter; {instead}") from None
        try:
            self._root: Any = tkinter.Tk(className="dqn")
        except tkinter.TclError as error:
            raise OSError(f"cannot open a window because there is no display ({error}); {instead}") from None
        self._tk_error: type[Exception] = tkinter.TclError
        self._root.title(f"dqn play {title}")
        self._root.resizable(False, False)
        self._root.protocol("WM_DELETE_WINDOW", self.close)
        self._label: Any = tkinter.Label(self._root, width=WIDTH, height=HEIGHT, borderwidth=0)
        self._label.pack()
        self._next_picture = time.monotonic()
        self._is_open = True

    def show(self, picture: Image.Image) -> bool:
        """Show `picture` and wait until the next one is due. Return False if the window was closed."""
        from PIL import ImageTk

        if not self._is_open:
            return False

        photo = ImageTk.PhotoImage(picture, master=self._root)
        self._label.configure(image=photo)
        self._label.image = photo  # tkinter keeps no reference: without this one the picture is collected
        self._root.update()
        now = time.monotonic()
        self._next_picture = max(self._next_picture + 1 / FRAMES_PER_SECOND, now)
        time.sleep(self._next_picture - now)
        return self._is_open

    def close(self) -> None:
        """Close the window, if it is open."""
        self._is_open = False
        with suppress(self._tk_error):
            self._root.destroy()
