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
game = gymnasium.make(**how["game"])
(screen, _), frames, trace, score, over = game.reset(), [], 0.0, 0.0, False
while not over:
    frame = torch.nn.functional.interpolate(torch.tensor(screen[None, None]).float(), **how["resize"])[0, 0].round()
    frames = [frame, *(frames or [frame] * 4)][:4]
    trace = torch.where((frame - frames[1]).abs() > how["motion_threshold"], 255.0, how["trace_decay"] * trace)
    state = how["pixel_scale"] * torch.stack(frames if how["frame_stack"] else [frame, trace.trunc()])[None]
    action = int(network(state).argmax() if game.np_random.random() >= how["epsilon"] else game.action_space.sample())
    screen, reward, terminated, truncated, _ = game.step(action)
    score, over = score + float(reward), terminated or truncated
print(f"an episode with a score of {score:g}")
