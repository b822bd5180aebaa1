"""The model card of an exported or shared agent, in Markdown."""

from __future__ import annotations

import json

from dqn.config import TrainConfig
from dqn.envs.games import game_title
from dqn.envs.observations import MOTION_THRESHOLD, STATE_HEIGHT, STATE_WIDTH, TRACE_DECAY
from dqn.evaluation.evaluation import Evaluation
from dqn.export.inference_spec import ExportedAgent

_SCALE = {
    False: "",
    True: "; they are rescaled (see the field `rescale_values`), which does not change their order",
}


def model_card(exported: ExportedAgent, address: str | None = None) -> str:
    """Description of an agent, its training, its scores and how to load it, in Markdown.

    Args:
        exported: the agent.
        address: URI of the agent in MLflow's model registry, such as `models:/Breakout@champion`; None if it is
            exported to a directory.
    """
    metadata, title = exported.metadata, game_title(exported.metadata.config.game)
    config, counters = metadata.config, metadata.counters
    return f"""# {title}: an agent trained by Q-learning

A network that estimates the Q-value of each action in {config.game} from the screen. It is the checkpoint of cycle \
{counters.cycle:,} of the run {exported.run_name} (`{exported.run_id}`), after {counters.states:,} states of play, \
{counters.episodes:,} finished episodes and {counters.updates:,} optimizer steps.

## Scores

{_scores(exported.evaluation)}

## Input and output

- Input: states (N, {STATE_HEIGHT}, {STATE_WIDTH}, {config.state_channels}) uint8, {_state(config)}
- Output: Q-values (N, {len(metadata.action_names)}) float32 of the actions \
{", ".join(metadata.action_names)}{_SCALE[config.rescale_values]}.

## How to load it

{_in_registry(address, config.state_channels) if address else _IN_A_DIRECTORY}

## Training

Network `{config.network}`, sweep `{config.sweep}`, discount {config.discount:g}, optimizer `{config.optimizer}`, \
{config.lanes} parallel games, seed {config.seed}. Complete configuration:

```json
{json.dumps(config.model_dump(mode="json"), indent=1)}
```

The scores are those of one run with one seed; a run with another seed may score differently. The network was trained \
on this game only.
"""


def _state(config: TrainConfig) -> str:
    if config.frame_pooling:
        frames = "Each frame is the maximum of the last two of the emulator."
        return f"{_state(config.model_copy(update={'frame_pooling': False}))} {frames}"
    if config.frame_stack:
        count = config.state_channels
        return f"the last {count} gray frames, newest first; at the start of an episode, all are its first frame."
    return f"""a gray frame and its motion trace. The trace of a pixel is \
255 if the pixel changed by more than {MOTION_THRESHOLD} since the last frame, else {TRACE_DECAY:g} times its previous \
value; it is 0 at the start of an episode."""


def _scores(evaluation: Evaluation | None) -> str:
    if evaluation is None:
        return "This checkpoint was not evaluated."
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


_IN_A_DIRECTORY = """`weights.safetensors` contains the weights. `config.json` contains under `play` the layers of a \
torch.nn.Sequential for them, and the sizes and constants of the preprocessing. The project's \
`docs/examples/play_exported.py` plays with these two files, with torch and gymnasium only: \
`python play_exported.py DIRECTORY`."""


def _in_registry(address: str, channels: int) -> str:
    return f"""```python
import mlflow, numpy
states = numpy.zeros((1, {STATE_HEIGHT}, {STATE_WIDTH}, {channels}), numpy.uint8)
q_values = mlflow.pyfunc.load_model("{address}").predict(states)
network = mlflow.pytorch.load_model("{address}")
```

The commands `dqn evaluate`, `dqn record`, `dqn play` and `dqn export` accept this address, for example \
`dqn evaluate {address}`. The folder `agent` contains the weights as safetensors and a JSON configuration."""
