"""An agent to give away: its weights, what others need to know to play with it, and a card that tells both."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from dqn.checkpoint import Facts
from dqn.config import TrainConfig
from dqn.envs.games import game_title
from dqn.envs.observations import MOTION_THRESHOLD, STATE_HEIGHT, STATE_WIDTH, TRACE_DECAY
from dqn.evaluation import Evaluation
from dqn.learning.networks import QNetwork, ResidualBlock

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
class Exported:
    """One checkpoint of a run without what only its training needs."""

    run_id: str
    run_name: str
    checkpoint: str  # digest of the unit it is from
    facts: Facts
    weights: dict[str, Tensor]
    evaluation: Evaluation | None  # the one that speaks for it, if it was evaluated


def untrained_network(facts: Facts) -> QNetwork:
    """A network that is built as an agent's is."""
    return QNetwork(facts.config, len(facts.action_names))


def recipe_to_play(facts: Facts, network: QNetwork) -> dict[str, Any]:
    """All that it takes to play without this package, ready for JSON.

    `game` are the arguments of gymnasium.make. `layers` make a torch.nn.Sequential that has the weights of
    `plain_weights` and takes states (N, C, 105, 80) times `pixel_scale`. `adds` has for each layer the number of the
    one whose input is added to its output, or None.
    """
    config = facts.config
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
        "epsilon": config.testing_epsilon,
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


_SCALE = {
    False: "",
    True: "; they are rescaled (see `rescale_values` in the project), which changes no order among them",
}


def model_card(exported: Exported, address: str | None = None) -> str:
    """What an agent is, how it was trained, how it scores and how to load it, in Markdown.

    Args:
        exported: the agent.
        address: where MLflow's registry has it, such as `models:/Breakout@champion`; else it is in a directory.
    """
    facts, title = exported.facts, game_title(exported.facts.config.game)
    config, counters = facts.config, facts.counters
    return f"""# {title}: an agent trained by Q-learning

A network that estimates the Q-value of each action in {config.game} from the screen. It is the checkpoint of cycle \
{counters.cycle:,} of the run {exported.run_name} (`{exported.run_id}`), after {counters.states:,} states of play, \
{counters.episodes:,} finished episodes and {counters.updates:,} optimizer steps.

## Scores

{_scores(exported.evaluation)}

## In and out

- In: states (N, {STATE_HEIGHT}, {STATE_WIDTH}, {config.state_channels}) uint8, {_state(config)}
- Out: Q-values (N, {len(facts.action_names)}) float32 of the actions \
{", ".join(facts.action_names)}{_SCALE[config.rescale_values]}.

## Load it

{_in_registry(address, config.state_channels) if address else _IN_A_DIRECTORY}

## Recipe

Network `{config.network}`, sweep `{config.sweep}`, discount {config.discount:g}, optimizer `{config.optimizer}`, \
{config.lanes} games side by side, seed {config.seed}. The whole configuration:

```json
{json.dumps(config.model_dump(mode="json"), indent=1)}
```

One run of one seed: another may score differently. It knows this game only.
"""


def _state(config: TrainConfig) -> str:
    if config.frame_stack:
        return f"the last {config.state_channels} gray frames, newest first; when an episode begins, all are its first."
    return f"""a gray frame and its motion trace. The trace is 255 where a \
pixel changed by more than {MOTION_THRESHOLD} since the last frame, and {TRACE_DECAY:g} times the trace before \
elsewhere; it is 0 when an episode begins."""


def _scores(evaluation: Evaluation | None) -> str:
    if evaluation is None:
        return "It was not evaluated."
    protocol, summary = evaluation.protocol, evaluation.summary()
    human = summary.get("human_normalized")
    interval = f"95 % bootstrap interval {summary['mean_low']:.2f} to {summary['mean_high']:.2f}"
    rows = {
        "mean": f"{summary['mean']:.2f} ({interval})",
        "median": f"{summary['median']:g}",
        "sd": f"{summary['sd']:.2f}",
        "min, max": f"{summary['min']:g}, {summary['max']:g}",
        "cut off by the time limit": f"{evaluation.cut_off} of {protocol.episodes}",
        **({} if human is None else {"human-normalized mean": f"{human:.3f} (0 random player, 1 human tester)"}),
    }
    table = "\n".join(f"| {name} | {text} |" for name, text in rows.items())
    return (
        f"Protocol: {protocol.episodes} complete episodes of {protocol.game}, epsilon {protocol.epsilon:g}, seed "
        f"{protocol.seed}, unclipped rewards.\n\n| score | |\n|---|---|\n{table}"
    )


_IN_A_DIRECTORY = """`weights.safetensors` has the weights, and `config.json` under `play` what it takes to use them: \
layers of a torch.nn.Sequential, sizes and constants. The project's `docs/examples/play_exported.py` plays with them \
by torch and gymnasium alone: `python play_exported.py DIRECTORY`."""


def _in_registry(address: str, channels: int) -> str:
    return f"""```python
import mlflow, numpy
states = numpy.zeros((1, {STATE_HEIGHT}, {STATE_WIDTH}, {channels}), numpy.uint8)
q_values = mlflow.pyfunc.load_model("{address}").predict(states)
network = mlflow.pytorch.load_model("{address}")
```

`dqn evaluate {address}` plays with it, and so do `dqn record`, `dqn play` and `dqn export`. In the folder `agent` are \
the weights as safetensors with a JSON configuration."""
