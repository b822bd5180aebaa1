"""Watch an agent play in a window."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import replace
from typing import Any

from PIL import Image

from dqn.plots.recording import FRAMES_PER_SECOND, HEIGHT, WIDTH, draw_shot, record_episode
from flows.commands.agents import Agent


def play_in_window(
    agent: Agent,
    epsilon: float | None = None,
    game: str | None = None,
    seed: int = 0,
    on_episode: Callable[[float, int], None] = lambda score, steps: None,
) -> None:
    """Play one complete episode after the other in a window, each with the next seed, until it is closed.

    Args:
        agent: who plays.
        epsilon: probability of a random action; the run's evaluation_epsilon unless told otherwise.
        game: another game with the same actions.
        seed: of the first episode.
        on_episode: told the score and the steps of each episode that ended.

    Raises:
        ValueError: an argument is out of range.
        OSError: there is no display.
    """
    protocol = agent.protocol(1, epsilon, game, seed)
    window = _Window(agent.name)
    with closing(window):
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
    """A window that shows pictures at the speed of play."""

    def __init__(self, title: str) -> None:
        instead = f"`dqn record {title} -o episode.mp4` makes a video instead"
        try:
            import tkinter
        except ImportError:
            raise OSError(f"this Python has no tkinter to open a window with; {instead}") from None
        try:
            self._root: Any = tkinter.Tk(className="dqn")
        except tkinter.TclError as error:
            raise OSError(f"there is no display to open a window on ({error}); {instead}") from None
        self._gone: type[Exception] = tkinter.TclError
        self._root.title(f"dqn play {title}")
        self._root.resizable(False, False)
        self._root.protocol("WM_DELETE_WINDOW", self.close)
        self._label: Any = tkinter.Label(self._root, width=WIDTH, height=HEIGHT, borderwidth=0)
        self._label.pack()
        self._due = time.monotonic()
        self._is_open = True

    def show(self, picture: Image.Image) -> bool:
        """Show the next picture for as long as it is due; False when the window was closed."""
        from PIL import ImageTk

        if not self._is_open:
            return False

        photo = ImageTk.PhotoImage(picture, master=self._root)
        self._label.configure(image=photo)
        self._label.image = photo  # or it is collected, and the window stays empty
        self._root.update()
        now = time.monotonic()
        self._due = max(self._due + 1 / FRAMES_PER_SECOND, now)
        time.sleep(self._due - now)
        return self._is_open

    def close(self) -> None:
        """Close the window, or do nothing if somebody has."""
        self._is_open = False
        with suppress(self._gone):
            self._root.destroy()
