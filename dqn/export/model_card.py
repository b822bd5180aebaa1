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
    True: "; they are rescaled (see `rescale_values` in the project), which changes no order among them",
}


def model_card(exported: ExportedAgent, address: str | None = None) -> str:
    """What an agent is, how it was trained, how it scores and how to load it, in Markdown.

    Args:
        exported: the agent.
        address: where MLflow's registry has it, such as `models:/Breakout@champion`; else it is in a directory.
    """
    metadata, title = exported.metadata, game_title(exported.metadata.config.game)
    config, counters = metadata.config, metadata.counters
    return f"""# {title}: an agent trained by Q-learning

A network that estimates the Q-value of each action in {config.game} from the screen. It is the checkpoint of cycle \
{counters.cycle:,} of the run {exported.run_name} (`{exported.run_id}`), after {counters.states:,} states of play, \
{counters.episodes:,} finished episodes and {counters.updates:,} optimizer steps.

## Scores

{_scores(exported.evaluation)}

## In and out

- In: states (N, {STATE_HEIGHT}, {STATE_WIDTH}, {config.state_channels}) uint8, {_state(config)}
- Out: Q-values (N, {len(metadata.action_names)}) float32 of the actions \
{", ".join(metadata.action_names)}{_SCALE[config.rescale_values]}.

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
