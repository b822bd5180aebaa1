"""Play an episode with what `dqn export RUN -o DIR` wrote: python play_exported.py DIR"""

import json
import sys
from pathlib import Path

import gymnasium
import torch
from safetensors.torch import load_file

how = json.loads(Path(sys.argv[1], "config.json").read_text())["play"]
network = torch.nn.Sequential(*(getattr(torch.nn, kind)(**options) for kind, options in how["layers"]))
network.load_state_dict(load_file(Path(sys.argv[1], "weights.safetensors")))
env = gymnasium.make(**how["game"])
env = gymnasium.wrappers.MaxAndSkipObservation(env, how["max_and_skip"]) if how["max_and_skip"] else env
env = gymnasium.wrappers.RecordEpisodeStatistics(env)
(screen, info), frames, trace = env.reset(), [], 0.0
while "episode" not in info:
    frame = torch.nn.functional.interpolate(torch.tensor(screen[None, None]).float(), **how["resize"])[0, 0].round()
    frames = [frame, *(frames or [frame] * 4)][:4]
    trace = torch.where((frame - frames[1]).abs() > how["motion_threshold"], 255.0, how["trace_decay"] * trace)
    out = [how["pixel_scale"] * torch.stack(frames if how["frame_stack"] else [frame, trace.trunc()])[None]]
    for layer, added in zip(network, how["adds"], strict=True):
        out.append(layer(out[-1]) + (0 if added is None else out[added]))
    screen, *_, info = env.step(env.action_space.sample() if torch.rand(1) < how["epsilon"] else int(out[-1].argmax()))
print(f"an episode with a score of {info['episode']['r']:g}")
