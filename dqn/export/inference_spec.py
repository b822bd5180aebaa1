"""An agent to give away: its weights, what others need to know to play with it, and a card that tells both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from dqn.checkpoint import CheckpointMetadata
from dqn.envs.observations import MOTION_THRESHOLD, STATE_HEIGHT, STATE_WIDTH, TRACE_DECAY
from dqn.evaluation.evaluation import Evaluation
from dqn.learning.networks import QNetwork, ResidualBlock, make_network

# What makes a layer of torch again, besides its weights
_OPTIONS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.ZeroPad2d: ("padding",),
    nn.Conv2d: ("in_channels", "out_channels", "kernel_size", "stride", "padding"),
    nn.MaxPool2d: ("kernel_size", "stride", "padding"),
    nn.GroupNorm: ("num_groups", "num_channels"),
    nn.LayerNorm: ("normalized_shape",),
    nn.Linear: ("in_features", "out_features"),
    nn.ReLU: (),
    nn.Flatten: (),
}


@dataclass(frozen=True)
class ExportedAgent:
    """One checkpoint of a run without what only its training needs."""

    run_id: str
    run_name: str
    checkpoint: str  # digest of the unit it is from
    metadata: CheckpointMetadata
    weights: dict[str, Tensor]
    evaluation: Evaluation | None  # the one that speaks for it, if it was evaluated


def untrained_network(metadata: CheckpointMetadata) -> QNetwork:
    """A network that is built as an agent's is."""
    return make_network(metadata.config, len(metadata.action_names))


def recipe_to_play(metadata: CheckpointMetadata, network: QNetwork) -> dict[str, Any]:
    """All that it takes to play without this package, ready for JSON.

    `game` are the arguments of gymnasium.make. `layers` make a torch.nn.Sequential that has the weights of
    `plain_weights` and takes states (N, C, 105, 80) times `pixel_scale`. `adds` has for each layer the number of the
    one whose input is added to its output, or None.
    """
    config = metadata.config
    native = config.game.startswith("ALE/")
    layers, adds = _in_a_row(network)
    return {
        "game": {
            "id": f"ale_py:{config.game}",
            "obs_type": "grayscale",
            "max_num_frames_per_episode": config.episode_frames_limit,
            "full_action_space": config.full_action_set,
        },
        "noop_max": config.noop_max,
        "resize": {
            "size": (STATE_HEIGHT, STATE_WIDTH),
            **({"mode": "area"} if native else {"mode": "bilinear", "antialias": True}),
        },
        "frame_stack": config.frame_stack,
        "motion_threshold": int(MOTION_THRESHOLD),
        "trace_decay": TRACE_DECAY,
        "pixel_scale": 1 / 255 if config.scale_input else 1.0,
        "layers": [_described(layer) for layer in layers],
        "adds": adds,
        "epsilon": config.evaluation_epsilon,
    }


def _in_a_row(network: QNetwork) -> tuple[nn.Sequential, list[int | None]]:
    """The layers of a network, those of residual blocks among them, and `adds` of `recipe_to_play`."""
    layers: list[nn.Module] = []
    adds: list[int | None] = []
    for part in (*network.convolutions, nn.Flatten(), *network.dense):
        inner = list(part) if isinstance(part, ResidualBlock) else [part]
        adds += [None] * (len(inner) - 1) + [len(layers) if isinstance(part, ResidualBlock) else None]
        layers += inner
    return nn.Sequential(*layers), adds


def _described(layer: nn.Module) -> tuple[str, dict[str, Any]]:
    kind = next(kind for kind in _OPTIONS if isinstance(layer, kind))
    return kind.__name__, {option: getattr(layer, option) for option in _OPTIONS[kind]}


_FLATTENED = "dense.0.weight"  # the weights behind the flattening


def plain_weights(weights: dict[str, Tensor], network: QNetwork) -> dict[str, Tensor]:
    """The weights of a QNetwork as those of torch.nn.Sequential, which flattens channel by channel, not by pixel.

    Args:
        weights: of any network that is built as `network` is.
        network: whose layers they are for.
    """
    by_pixel, channels = weights[_FLATTENED], _flattened_channels(network)
    by_channel = by_pixel.reshape(len(by_pixel), -1, channels).transpose(1, 2).flatten(1)
    plain = {**weights, _FLATTENED: by_channel}
    return {new: plain[name] for name, new in _plain_names(network).items()}


def network_weights(plain: dict[str, Tensor], network: QNetwork) -> dict[str, Tensor]:
    """The inverse of `plain_weights`."""
    weights = {name: plain[new] for name, new in _plain_names(network).items()}
    by_channel, channels = weights[_FLATTENED], _flattened_channels(network)
    by_pixel = by_channel.reshape(len(by_channel), channels, -1).transpose(1, 2).flatten(1)
    return {**weights, _FLATTENED: by_pixel}


def _plain_names(network: QNetwork) -> dict[str, str]:
    """What the weights of a network are called when its layers are in a row."""
    return dict(zip(network.state_dict(), _in_a_row(network)[0].state_dict(), strict=True))


def _flattened_channels(network: QNetwork) -> int:
    return [layer.out_channels for layer in network.modules() if isinstance(layer, nn.Conv2d)][-1]
