"""Play an episode with what `dqn export RUN -o DIR` wrote: python play_exported.py DIR [SEED]."""

import json
import sys
from pathlib import Path

import ale_py
import gymnasium
import torch
from safetensors.torch import load_file
from torch import nn

folder, seed = Path(sys.argv[1]), int(*sys.argv[2:3])
about = json.loads((folder / "config.json").read_text())
how = about["play"]
size = how["height"], how["width"]
parts = ("convolutions", "dense")
network = nn.ModuleDict({part: nn.Sequential(*(getattr(nn, kind)(**o) for kind, o in how[part])) for part in parts})
network.load_state_dict(load_file(folder / "weights.safetensors"))

gymnasium.register_envs(ale_py)
options = {"max_num_frames_per_episode": how["frames_limit"], "full_action_space": how["full_action_space"]}
game = gymnasium.make(about["game"], obs_type="grayscale", **options)
game.action_space.seed(seed)
screen, _ = game.reset(seed=seed)
noops = int(game.np_random.integers(how["noop_max"] + 1))
last, frames, trace, score, over = None, [], torch.zeros(size), 0.0, False
while not over:
    pixels = torch.tensor(screen, dtype=torch.float32)[None, None]
    frame = nn.functional.interpolate(pixels, size, **how["resize"])[0, 0].round()
    change = (frame - (frame if last is None else last)).abs()
    trace = torch.where(change > how["motion_threshold"], 255.0, how["trace_decay"] * trace)
    frames = [frame, *(frames or [frame] * how["stacked_frames"])][: how["stacked_frames"]]
    state = torch.stack(frames or [frame, trace.trunc()])
    with torch.no_grad():
        features = network["convolutions"](state[None] * how["pixel_scale"])
        q_values = network["dense"](features.permute(0, 2, 3, 1).flatten(1))[0]
    explore = game.np_random.random() < how["epsilon"]
    action = 0 if noops > 0 else game.action_space.sample() if explore else int(q_values.argmax())
    screen, reward, terminated, truncated, _ = game.step(action)
    last, noops, score, over = frame, noops - 1, score + float(reward), terminated or truncated
print(f"{about['game']}: an episode with a score of {score:g}")
