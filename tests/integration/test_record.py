"""Recorded videos, which are decoded again."""

from __future__ import annotations

from pathlib import Path

import av
import pytest

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


@pytest.mark.parametrize("name", ["episode.avi", "missing/episode.mp4", "folder.mp4"])
def test_record_refuses_an_invalid_path_before_playing(trained_run: str, tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(ValueError, match=r"cannot record to .*; it must be an \.mp4 file in a directory that exists"):
        record_video(open_agent(trained_run), tmp_path / name)


def test_record_failure_leaves_the_old_video(trained_run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "episode.mp4"
    path.write_bytes(b"old")

    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("flows.commands.record.draw_shot", fail)
    with pytest.raises(OSError, match="No space"):
        record_video(open_agent(trained_run), path)
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1
