from __future__ import annotations

import json
from dataclasses import replace
from typing import get_args

import gymnasium
import numpy as np
import pytest
import torch
from torch import nn

from dqn.checkpoint import CheckpointMetadata, Counters
from dqn.config import TrainConfig, make_config
from dqn.envs.backends import open_env
from dqn.envs.games import GameSettings
from dqn.evaluation.evaluation import Evaluation, Protocol
from dqn.export.inference_spec import ExportedAgent, inference_spec, network_weights, plain_weights
from dqn.export.model_card import model_card
from dqn.learning.networks import make_network

NETWORKS = get_args(TrainConfig.model_fields["network"].annotation)
ACTIONS = ("NOOP", "FIRE", "RIGHT", "LEFT")


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("network", NETWORKS)
def test_inference_spec_rebuilds_same_network(network: str, normalize: bool) -> None:
    """Only torch is needed to build it."""
    fields = {"network": network, "normalize": normalize, "scale_input": normalize, "frame_stack": not normalize}
    config = make_config("fast", fields)
    original = make_network(config, 4)
    spec = json.loads(json.dumps(inference_spec(CheckpointMetadata(config, ACTIONS), original)))
    rebuilt = nn.Sequential(*(getattr(nn, kind)(**options) for kind, options in spec["layers"]))
    plain = plain_weights(original.state_dict(), original)
    rebuilt.load_state_dict(plain)
    states = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, *original.state_shape), dtype=np.uint8))
    with torch.no_grad():
        outputs = [states.permute(0, 3, 1, 2).float() * spec["pixel_scale"]]
        for layer, added in zip(rebuilt, spec["adds"], strict=True):
            outputs.append(layer(outputs[-1]) + (0 if added is None else outputs[added]))
        expected = original(states)
    assert torch.allclose(outputs[-1], expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    back = network_weights(plain, original)
    assert back.keys() == original.state_dict().keys()
    assert all(torch.equal(back[name], weight) for name, weight in original.state_dict().items())


def test_environment_of_a_spec_pools_frames() -> None:
    """It yields the screens that the agent was trained on: the maximum of two frames of the emulator."""
    config = make_config("fast", {"frame_pooling": True, "game": "ALE/SpaceInvaders-v5"})
    metadata = CheckpointMetadata(config, ACTIONS)
    spec = json.loads(json.dumps(inference_spec(metadata, make_network(config, 4))))
    made = gymnasium.wrappers.MaxAndSkipObservation(gymnasium.make(**spec["game"]), spec["max_and_skip"])
    expected = open_env(GameSettings.of(config))
    for step in range(60):
        (screen, *_), (other, *_) = [(env.step(step % 6) if step else env.reset(seed=5)) for env in (made, expected)]
        assert np.array_equal(screen, other)
    made.close()
    expected.close()
    assert "the maximum of the last two" in model_card(ExportedAgent("0123", "first", "abc", metadata, {}, None))
    assert (
        inference_spec(CheckpointMetadata(make_config("fast"), ACTIONS), make_network(config, 4))["max_and_skip"] == 0
    )


def test_model_card_has_protocol_scores_and_loading() -> None:
    metadata = CheckpointMetadata(make_config("fast", {"discount": 0.98}), ACTIONS, Counters(7, 28_672, 90, 224))
    evaluation = Evaluation(Protocol("ALE/Breakout-v5", 3, 0.05, 9), [1.0, 2.0, 6.0], [100, 200, 300], 1)
    exported = ExportedAgent("0123", "first", "abc", metadata, {}, evaluation)
    card = model_card(exported, "models:/Breakout@champion")
    for text in (
        "cycle 7 of the run first (`0123`), after 28,672 states",
        "Protocol: 3 complete episodes of ALE/Breakout-v5, epsilon 0.05, seed 9",
        "| mean | 3.00 (95 % bootstrap interval ",
        "| cut off by the time limit | 1 of 3 |",
        '"discount": 0.98',
        'mlflow.pyfunc.load_model("models:/Breakout@champion")',
        "NOOP, FIRE, RIGHT, LEFT",
    ):
        assert text in card
    stacked = replace(metadata, config=make_config("fast", {"frame_stack": True}))
    card = model_card(ExportedAgent("0123", "first", "abc", stacked, {}, None), "models:/Breakout@champion")
    assert "(N, 105, 80, 4) uint8, the last 4 gray frames" in card and "zeros((1, 105, 80, 4)" in card
    alone = model_card(ExportedAgent("0123", "first", "abc", metadata, {}, None))
    assert "This checkpoint was not evaluated." in alone and "play_exported.py" in alone and "mlflow" not in alone
