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

SPAN_SHOTS = 200  # the first ones, whose Q-values say how far the bars reach

QUALITY = {"crf": "20", "preset": "veryfast"}


def record_video(
    agent: Agent, path: Path, epsilon: float | None = None, game: str | None = None, seed: int = 0
) -> dict[str, Any]:
    """Play one complete episode with `agent` into an MP4 file (H.264) at `path`, and log it in MLflow.

    A file that stands there is replaced when the new one is whole.

    Returns:
        The score, the steps and the path.

    Raises:
        ValueError: the path is no .mp4 in a directory that exists, or an argument is out of range.
        OSError: it cannot be written.
    """
    if path.suffix != ".mp4" or path.is_dir() or not path.absolute().parent.is_dir():
        raise ValueError(f"cannot record to {path}; it must be a file .mp4 in a directory that exists")
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
    agent.run.tracking.log_file(agent.run.run_id, path, "videos")
    return {"score": last.score, "steps": last.step + 1, "path": str(path)}


def _encode(path: Path, shots: Iterable[Shot], action_names: tuple[str, ...]) -> Shot:
    """Encode the shots; the last of them."""
    coming = iter(shots)
    first = list(islice(coming, SPAN_SHOTS))
    values = np.array([shot.q_values for shot in first])
    span = float(values.min()), float(values.max())
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream: Any = container.add_stream("libx264", rate=FRAMES_PER_SECOND, options=QUALITY)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for shot in chain(first, coming):
            picture = av.VideoFrame.from_ndarray(draw_shot(shot, action_names, span), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return shot
