"""Play an episode with what `dqn export RUN -o DIR` wrote: python play_exported.py DIR"""

import json
import sys
from pathlib import Path

import gymnasium
import torch
from safetensors.torch import load_file


class ResidualBlock(torch.nn.Sequential):
    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features + super().forward(features)


def made(kind: str, options: dict) -> torch.nn.Module:
    inner = [made(*layer) for layer in options.get("layers", [])]
    return ResidualBlock(*inner) if kind == "ResidualBlock" else getattr(torch.nn, kind)(**options)


how = json.loads(Path(sys.argv[1], "config.json").read_text())["play"]
network = torch.nn.Sequential(*(made(*layer) for layer in how["layers"]))
network.load_state_dict(load_file(Path(sys.argv[1], "weights.safetensors")))
game = gymnasium.wrappers.RecordEpisodeStatistics(gymnasium.make(**how["game"]))
(screen, info), frames, trace = game.reset(), [], 0.0
while "episode" not in info:
    frame = torch.nn.functional.interpolate(torch.tensor(screen[None, None]).float(), **how["resize"])[0, 0].round()
    frames = [frame, *(frames or [frame] * 4)][:4]
    trace = torch.where((frame - frames[1]).abs() > how["motion_threshold"], 255.0, how["trace_decay"] * trace)
    state = how["pixel_scale"] * torch.stack(frames if how["frame_stack"] else [frame, trace.trunc()])[None]
    action = int(network(state).argmax() if game.np_random.random() >= how["epsilon"] else game.action_space.sample())
    screen, *_, info = game.step(action)
print(f"an episode with a score of {info['episode']['r']:g}")
