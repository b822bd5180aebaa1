"""Record an episode as a video."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from itertools import chain, islice
from pathlib import Path
from typing import Any

import av
import numpy as np

from dqn.plots.recording import FRAMES_PER_SECOND, HEIGHT, WIDTH, Shot, draw_shot, record_episode
from flows.commands.agents import Agent

RANGE_SHOTS = 200  # the Q-values of this many shots at the start give the range of the bars

QUALITY = {"crf": "20", "preset": "veryfast"}


def record_video(
    agent: Agent, path: Path, epsilon: float | None = None, game: str | None = None, seed: int = 0
) -> dict[str, Any]:
    """Play one complete episode, and record it as an MP4 file (H.264) at `path`. A run logs the file in MLflow.

    An existing file is replaced only when the new one is complete.

    Returns:
        `score`, `steps` and `path`.

    Raises:
        ValueError: `path` is not an .mp4 file in a directory that exists, or an argument is out of range.
        OSError: the file cannot be written.
    """
    if path.suffix != ".mp4" or path.is_dir() or not path.absolute().parent.is_dir():
        raise ValueError(f"cannot record to {path}; it must be an .mp4 file in a directory that exists")
    protocol = agent.protocol(1, epsilon, game, seed)
    shots = record_episode(agent.learner.estimate, protocol, agent.metadata.config)
    with tempfile.NamedTemporaryFile(dir=path.absolute().parent, suffix=".mp4", delete=False) as file:
        unfinished = Path(file.name)
    try:
        last = _encode(unfinished, shots, agent.metadata.action_names)
        unfinished.chmod(0o644)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    if agent.run:
        agent.run.tracking.log_file(agent.run.run_id, path, "videos")
    return {"score": last.score, "steps": last.step + 1, "path": str(path)}


def _encode(path: Path, shots: Iterable[Shot], action_names: tuple[str, ...]) -> Shot:
    """Encode the shots and return the last one."""
    remaining = iter(shots)
    first = list(islice(remaining, RANGE_SHOTS))
    q_values = np.array([shot.q_values for shot in first])
    value_range = float(q_values.min()), float(q_values.max())
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream: Any = container.add_stream("libx264", rate=FRAMES_PER_SECOND, options=QUALITY)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for shot in chain(first, remaining):
            picture = av.VideoFrame.from_ndarray(draw_shot(shot, action_names, value_range), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return shot
