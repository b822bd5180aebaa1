"""Recorded videos, which are decoded again."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, ImageSequence

from dqn.plots.recording import draw_shot, record_episode
from flows.commands.agents import open_agent
from flows.commands.record import record_video

pytestmark = pytest.mark.usefixtures("home")


def test_video_has_a_frame_per_step_and_plays_in_browsers(trained_run: str, tmp_path: Path) -> None:
    """Browsers play H.264 with yuv420p."""
    agent = open_agent(trained_run)
    result = record_video(agent, tmp_path / "episode.mp4", epsilon=1.0)
    with av.open(str(tmp_path / "episode.mp4")) as video:
        stream = video.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(stream)]
        assert stream.codec_context.name == "h264" and stream.codec_context.pix_fmt == "yuv420p"
    assert len(frames) == result["steps"] and result["steps"] > 50
    assert frames[0].shape == (480, 1040, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["episode.mp4"]
    assert (agent.run.artifacts / "videos").names() == ["episode.mp4"]


def test_gif_is_an_excerpt_at_a_third_of_the_frames(trained_run: str, tmp_path: Path) -> None:
    """It shows the same pictures as the video, with the Q-values, and repeats forever."""
    agent, path = open_agent(trained_run), tmp_path / "episode.gif"
    result = record_video(agent, path, epsilon=1.0, seconds=3)
    assert (result["steps"], result["complete"]) == (45, False)
    with Image.open(path) as gif:
        assert (gif.format, gif.size, gif.info["loop"]) == ("GIF", (1040, 480), 0)
        frames = [frame.convert("RGB").copy() for frame in ImageSequence.Iterator(gif)]
        assert sum(frame.info["duration"] for frame in ImageSequence.Iterator(gif)) == 3_000
    shots = list(record_episode(agent.learner.estimate, agent.protocol(1, 1.0), agent.metadata.config))[:45]
    q_values = np.array([shot.q_values for shot in shots])
    span = float(q_values.min()), float(q_values.max())
    shown = [draw_shot(shot, agent.metadata.action_names, span) for shot in shots[::3]]
    assert len(frames) <= len(shown), "equal frames may be merged"
    for frame, picture in ((frames[0], shown[0]), (frames[-1], shown[-1])):
        assert np.abs(np.asarray(frame).astype(int) - picture).mean() < 2
    assert path.stat().st_size < 45 / 300 * 3e6, "less than 3 MB for 20 seconds"
    whole = record_video(agent, path, epsilon=1.0)
    assert whole["complete"] and whole["steps"] > 45


@pytest.mark.parametrize("name", ["episode.avi", "missing/episode.mp4", "folder.mp4"])
def test_record_refuses_an_invalid_path_before_playing(trained_run: str, tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(ValueError, match=r"cannot record to .*; it must be an \.mp4 or \.gif file in a directory"):
        record_video(open_agent(trained_run), tmp_path / name)


def test_record_refuses_seconds_that_are_not_above_zero(trained_run: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="seconds is 0; it must be above 0"):
        record_video(open_agent(trained_run), tmp_path / "episode.gif", seconds=0)


def test_record_failure_leaves_the_old_video(trained_run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "episode.mp4"
    path.write_bytes(b"old")

    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("flows.commands.record.draw_shot", fail)
    with pytest.raises(OSError, match="No space"):
        record_video(open_agent(trained_run), path)
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1
