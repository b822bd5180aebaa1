"""The window of `dqn play`, on a virtual display and without a display."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
from collections.abc import Iterator

import pytest
from PIL import Image

from flows.commands.agents import open_agent
from flows.commands.play import play_in_window

pytestmark = pytest.mark.usefixtures("home")


def test_play_without_a_display_suggests_record(trained_run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(OSError, match=r"use `dqn record looked-at -o episode.mp4` to make a video instead") as raised:
        play_in_window(open_agent(trained_run))
    assert "\n" not in str(raised.value)


@pytest.fixture
def display(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if not shutil.which("Xvfb"):
        pytest.skip("Xvfb is not installed")
    read, write = os.pipe()
    options = ["-displayfd", str(write), "-screen", "0", "1280x720x24", "-nolisten", "tcp"]
    with subprocess.Popen(["Xvfb", *options], pass_fds=[write], stderr=subprocess.DEVNULL) as server:
        os.close(write)
        try:
            assert select.select([read], [], [], 30)[0]
            monkeypatch.setenv("DISPLAY", f":{os.read(read, 20).decode().strip()}")
            yield
        finally:
            os.close(read)
            server.terminate()


def test_play_shows_episodes_until_the_window_is_closed(
    trained_run: str, display: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import flows.commands.play

    monkeypatch.setattr(flows.commands.play, "FRAMES_PER_SECOND", 10_000)
    episodes: list[tuple[float, int]] = []
    show, windows = flows.commands.play._Window.show, []

    def shown(window: flows.commands.play._Window, picture: Image.Image) -> bool:
        windows.append(window._label.winfo_ismapped())
        if len(episodes) == 2:
            window._root.after(0, window.close)  # as the close button does
        return bool(show(window, picture))

    monkeypatch.setattr(flows.commands.play._Window, "show", shown)
    play_in_window(open_agent(trained_run), on_episode=lambda score, steps: episodes.append((score, steps)))
    assert len(episodes) == 2 and all(0 < steps <= 101 for _, steps in episodes)
    assert any(windows), "the window was on the screen"
