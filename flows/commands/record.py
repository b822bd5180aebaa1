"""Record an episode as a video or as an animated picture."""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dqn.plots.recording import FRAMES_PER_SECOND, HEIGHT, WIDTH, Shot, draw_shot, record_episode
from dqn.threads import torch_threads
from flows.commands.agents import Agent

RANGE_SHOTS = 200  # the Q-values of this many shots at the start give the range of the bars

QUALITY = {"crf": "20", "preset": "veryfast"}

GIF_SECONDS = 20.0  # of play, unless another number is asked for, because a GIF grows fast
GIF_STEPS = 3  # steps per frame, so that a GIF has 5 frames per second
PALETTE_SHOTS = 32  # the colors of a GIF are those of this many of its frames


def record_video(
    agent: Agent,
    path: Path,
    epsilon: float | None = None,
    game: str | None = None,
    seed: int = 0,
    seconds: float | None = None,
) -> dict[str, Any]:
    """Play one episode, and record it as an MP4 file (H.264) or an animated GIF at `path`. A run logs it in MLflow.

    An existing file is replaced only when the new one is complete.

    Args:
        agent: the agent that plays.
        path: an .mp4 or a .gif file.
        epsilon: probability of a random action; the run's `evaluation_epsilon` by default.
        game: another game with the same actions.
        seed: seed of the episode.
        seconds: end the recording after this many seconds of play; by default after 20 for a GIF, and at the end of the
            episode for a video.

    Returns:
        `score` and `steps` of what was recorded, `complete`, whether it is the complete episode, and `path`.

    Raises:
        ValueError: `path` is not such a file in a directory that exists, or an argument is out of range.
        OSError: the file cannot be written.
    """
    if path.suffix not in (".mp4", ".gif") or path.is_dir() or not path.absolute().parent.is_dir():
        raise ValueError(f"cannot record to {path}; it must be an .mp4 or .gif file in a directory that exists")
    if seconds is None and path.suffix == ".gif":
        seconds = GIF_SECONDS
    if seconds is not None and not seconds > 0:
        raise ValueError(f"seconds is {seconds:g}; it must be above 0")
    protocol = agent.protocol(1, epsilon, game, seed)
    steps = None if seconds is None else max(1, round(seconds * FRAMES_PER_SECOND))
    encode = _encode_gif if path.suffix == ".gif" else _encode
    with tempfile.NamedTemporaryFile(dir=path.absolute().parent, suffix=path.suffix, delete=False) as file:
        unfinished = Path(file.name)
    try:
        play = record_episode(agent.learner.estimate, protocol, agent.metadata.config)
        with torch_threads(1), closing(play) as shots:
            newest = deque[Shot](maxlen=1)
            encode(unfinished, _kept(islice(shots, steps), newest), agent.metadata.action_names)
            complete = next(shots, None) is None
        unfinished.chmod(0o644)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    if agent.run:
        agent.run.tracking.log_file(agent.run.run_id, path, "videos")
    last = newest[0]
    return {"score": last.score, "steps": last.step + 1, "complete": complete, "path": str(path)}


def _kept(shots: Iterable[Shot], newest: deque[Shot]) -> Iterator[Shot]:
    """The shots, each of which is appended to `newest` when it is taken."""
    for shot in shots:
        newest.append(shot)
        yield shot


def _pictures(shots: Iterable[Shot], action_names: tuple[str, ...]) -> Iterator[np.ndarray]:
    """Pictures (480, 1040, 3) uint8 of the shots."""
    remaining = iter(shots)
    first = list(islice(remaining, RANGE_SHOTS))
    q_values = np.array([shot.q_values for shot in first])
    value_range = float(q_values.min()), float(q_values.max())
    for shot in chain(first, remaining):
        yield draw_shot(shot, action_names, value_range)


def _encode(path: Path, shots: Iterable[Shot], action_names: tuple[str, ...]) -> None:
    """Encode the shots as an MP4 file."""
    import av

    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream: Any = container.add_stream("libx264", rate=FRAMES_PER_SECOND, options=QUALITY)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for picture in _pictures(shots, action_names):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def _encode_gif(path: Path, shots: Iterable[Shot], action_names: tuple[str, ...]) -> None:
    """Encode every third shot as a frame of an animated GIF, which repeats forever.

    All frames have the same palette and no dithering, so that pixels which do not change need no space.
    """
    pictures = (
        Image.fromarray(picture)
        for number, picture in enumerate(_pictures(shots, action_names))
        if number % GIF_STEPS == 0
    )
    first = list(islice(pictures, PALETTE_SHOTS))
    together = Image.new("RGB", (WIDTH, HEIGHT * len(first)))
    for number, picture in enumerate(first):
        together.paste(picture, (0, HEIGHT * number))
    palette = together.quantize(255, dither=Image.Dither.NONE)
    frames = (picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in chain(first, pictures))
    milliseconds = 1000 * GIF_STEPS // FRAMES_PER_SECOND
    next(frames).save(path, save_all=True, append_images=frames, duration=milliseconds, loop=0, optimize=False)
