"""An exported agent: its weights, and the preprocessing and the layers of its network as data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from dqn.checkpoint import CheckpointMetadata
from dqn.envs.games import FRAME_SKIP, GameSettings
from dqn.envs.observations import MOTION_THRESHOLD, STATE_HEIGHT, STATE_WIDTH, TRACE_DECAY
from dqn.evaluation.evaluation import Evaluation
from dqn.learning.networks import QNetwork, ResidualBlock, make_network
from dqn.metrics import Curve

# Arguments that construct a layer
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
    """The part of a checkpoint that is needed to play, without the state of training."""

    run_id: str
    run_name: str
    checkpoint: str  # digest of the checkpoint's unit
    metadata: CheckpointMetadata
    weights: dict[str, Tensor]  # state dict of a QNetwork
    evaluation: Evaluation | None  # None if the checkpoint was not evaluated
    curves: dict[str, Curve] = field(default_factory=dict)  # of its training; empty if they are not known


def untrained_network(metadata: CheckpointMetadata) -> QNetwork:
    """A network with the architecture of an agent and random weights."""
    return make_network(metadata.config, len(metadata.action_names))


def inference_spec(metadata: CheckpointMetadata, network: QNetwork) -> dict[str, Any]:
    """Everything that is needed, besides the weights, to play with an agent without this package; ready for JSON.

    Args:
        metadata: of the agent's checkpoint.
        network: with the architecture of the agent.

    Returns:
        Among others `game`, the arguments of gymnasium.make, and `max_and_skip`: if it is not 0, the environment is
        wrapped in gymnasium.wrappers.MaxAndSkipObservation with this number of frames. `layers` describes the layers
        of a torch.nn.Sequential for the weights of `plain_weights`; its input is states (N, C, 105, 80) times
        `pixel_scale`. `adds` has for each layer the number of the layer whose input is added to its output, or None.
    """
    config = metadata.config
    native, pooling = GameSettings.of(config).native, config.frame_pooling
    layers, adds = _flat_layers(network)
    return {
        "game": {
            "id": f"ale_py:{config.game}",
            "obs_type": "grayscale",
            "max_num_frames_per_episode": config.episode_frames_limit,
            "full_action_space": config.full_action_set,
            **({"frameskip": 1} if pooling else {}),
        },
        "max_and_skip": FRAME_SKIP if pooling else 0,
        "noop_max": config.noop_max,
        "resize": {
            "size": (STATE_HEIGHT, STATE_WIDTH),
            **({"mode": "area"} if native else {"mode": "bilinear", "antialias": True}),
        },
        "frame_stack": config.frame_stack,
        "motion_threshold": int(MOTION_THRESHOLD),
        "trace_decay": TRACE_DECAY,
        "pixel_scale": 1 / 255 if config.scale_input else 1.0,
        "layers": [_layer_spec(layer) for layer in layers],
        "adds": adds,
        "epsilon": config.evaluation_epsilon,
    }


def _flat_layers(network: QNetwork) -> tuple[nn.Sequential, list[int | None]]:
    """All layers of a network in one Sequential, residual blocks included, and `adds` of `inference_spec`."""
    layers: list[nn.Module] = []
    adds: list[int | None] = []
    for part in (*network.convolutions, nn.Flatten(), *network.dense):
        inner = list(part) if isinstance(part, ResidualBlock) else [part]
        adds += [None] * (len(inner) - 1) + [len(layers) if isinstance(part, ResidualBlock) else None]
        layers += inner
    return nn.Sequential(*layers), adds


def _layer_spec(layer: nn.Module) -> tuple[str, dict[str, Any]]:
    """The name of a layer's class in torch.nn, and the arguments that construct the layer."""
    kind = next(kind for kind in _OPTIONS if isinstance(layer, kind))
    return kind.__name__, {option: getattr(layer, option) for option in _OPTIONS[kind]}


_FLATTENED = "dense.0.weight"  # weights of the layer after nn.Flatten


def plain_weights(weights: dict[str, Tensor], network: QNetwork) -> dict[str, Tensor]:
    """Convert the weights of a QNetwork to those of the torch.nn.Sequential of `inference_spec`.

    The inputs of the first dense layer are reordered, because a QNetwork flattens pixel by pixel and nn.Flatten
    flattens channel by channel.

    Args:
        weights: state dict of a network with the architecture of `network`.
        network: any network with this architecture.
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
    """For each weight of a network, its name in the Sequential of `_flat_layers`."""
    return dict(zip(network.state_dict(), _flat_layers(network)[0].state_dict(), strict=True))


def _flattened_channels(network: QNetwork) -> int:
    return [layer.out_channels for layer in network.modules() if isinstance(layer, nn.Conv2d)][-1]
