"""Publish the agent of a run in `agents/`: `python -m benchmarks.agents RUN [--home DIR]`.

The weights are stored in bfloat16 if the agent scores the same with them. The model card begins with the metadata that
Hugging Face reads. A second evaluation of a few episodes is stored, too, so that a test can repeat it exactly.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from ruamel.yaml import YAML
from torch import Tensor

from benchmarks.report import cpu_fields
from dqn.config import TrainConfig, make_config
from dqn.envs.games import game_title
from dqn.evaluation.evaluation import Evaluation, Protocol
from dqn.export.inference_spec import ExportedAgent
from dqn.export.model_card import model_card
from flows.commands.agents import Agent, open_agent
from flows.commands.export import exported_of
from flows.commands.record import record_video
from storage.formats.agent_export import CARD, CONFIG, WEIGHTS, read_export, write_export
from storage.run_tags import PRESET
from tasks.play_evaluation import play_evaluation

AGENTS = Path(__file__).resolve().parents[1] / "agents"
GIF = "episode.gif"
EPISODES, CHECKED_EPISODES, CHECKED_SEED = 100, 3, 1
MOST_BYTES = 5_000_000  # of the weights
# Fields that are resolved for a machine, and do not belong to the command that trains the agent again.
MACHINE_FIELDS = {"device", "precision", "compiled", "threads", "lane_groups", "overlap", "play_device"}

Evaluate = Callable[[Agent, Protocol], Evaluation]


def evaluate(agent: Agent, protocol: Protocol) -> Evaluation:
    """Play the episodes of a protocol; nothing is stored."""
    return play_evaluation(agent.learner, protocol, len(os.sched_getaffinity(0)))[0]


def publish(agent: Agent, directory: Path, preset: str = "fast", run_evaluation: Evaluate = evaluate) -> Path:
    """Write the agent of a run into `directory`/<game>, and replace what is there.

    Args:
        agent: of a run.
        directory: of all published agents.
        preset: recipe of the run, for the command that trains it again.
        run_evaluation: plays the episodes of a protocol.

    Raises:
        ValueError: the weights take more than 5 MB.
    """
    assert agent.run is not None
    title = game_title(agent.metadata.config.game).lower()
    protocol = agent.protocol(EPISODES)
    exact = exported_of(agent, None)
    command = training_command(agent.metadata.config, agent.metadata.counters.states, preset)
    with tempfile.TemporaryDirectory(dir=directory, prefix=".publishing-") as staging:
        in_float32 = _written(Path(staging, "float32"), exact, protocol, run_evaluation)
        rounded = replace(exact, weights=in_bfloat16(agent.weights))
        in_bf16 = _written(Path(staging, "bfloat16"), rounded, protocol, run_evaluation)
        chosen = in_bf16 if scores_the_same(in_float32.evaluation, in_bf16.evaluation) else in_float32
        size = (chosen.directory / WEIGHTS).stat().st_size
        if size > MOST_BYTES:
            raise ValueError(f"the weights take {size:,} bytes; an agent in {directory} has at most {MOST_BYTES:,}")
        opened = Agent.load(chosen.directory)
        checked = run_evaluation(opened, opened.protocol(CHECKED_EPISODES, seed=CHECKED_SEED))
        exported = replace(read_export(chosen.directory), evaluation=chosen.evaluation)
        write_export(chosen.directory, exported, card(exported, title, chosen.evaluation, checked, command))
        record_video(opened, chosen.directory / GIF)
        shutil.rmtree(directory / title, ignore_errors=True)
        chosen.directory.rename(directory / title)
    return directory / title


class _Written(NamedTuple):
    directory: Path
    evaluation: Evaluation


def _written(directory: Path, exported: ExportedAgent, protocol: Protocol, run_evaluation: Evaluate) -> _Written:
    """An agent in a directory, from which it is evaluated."""
    directory.mkdir()
    write_export(directory, exported, "")
    return _Written(directory, run_evaluation(Agent.load(directory), protocol))


def in_bfloat16(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights in bfloat16, except those of the last layer, which a network in bfloat16 has in float32, too."""
    last = list(weights)[-1].rpartition(".")[0]
    return {name: weight if name.startswith(f"{last}.") else weight.bfloat16() for name, weight in weights.items()}


def scores_the_same(first: Evaluation, second: Evaluation) -> bool:
    """Whether each mean is within the 95 % interval of the other."""
    one, other = first.summary(), second.summary()
    return all(each["mean_low"] <= mean["mean"] <= each["mean_high"] for each, mean in ((one, other), (other, one)))


def processor() -> str:
    """The kind of processor and the version of torch, on which the digits of Q-values depend."""
    fields = cpu_fields()
    model = fields.get("model name", "unknown processor")
    family = f"family {fields.get('cpu family', '?')}, model {fields.get('model', '?')}"
    return f"{model} ({family}), torch {torch.__version__}"


def training_command(config: TrainConfig, states: int, preset: str) -> str:
    """The command that trains a run with this configuration, without the fields of the machine."""
    usual = make_config(preset, {}).model_dump(mode="json")
    settings = [
        f"--set {name}={value}"
        for name, value in config.model_dump(mode="json").items()
        if value != usual[name] and name not in MACHINE_FIELDS | {"game", "seed"}
    ]
    options = [f"--preset {preset}", f"--game {config.game}", f"--states {states}", f"--seed {config.seed}"]
    return " ".join(["dqn train", *options, *settings])


def card(exported: ExportedAgent, title: str, evaluation: Evaluation, checked: Evaluation, command: str) -> str:
    """The model card: the metadata that Hugging Face reads, the animation, and the card of `dqn export`."""
    head, _, rest = model_card(exported).partition("\n")
    text = io.StringIO()
    yaml = YAML()
    yaml.width = 10_000
    yaml.dump(front_matter(exported, title, evaluation, checked), text)
    return (
        f"---\n{text.getvalue()}---\n\n{head}\n\n"
        f"![The agent plays: the screen, the motion trace and the Q-values]({GIF})\n"
        f"{rest}\n## Commands\n\nThis command trained it, and these commands play with it:\n\n```sh\n{command}\n"
        f"dqn play agents/{title}\ndqn evaluate agents/{title} --episodes {evaluation.protocol.episodes}\n```\n"
    )


def front_matter(exported: ExportedAgent, title: str, evaluation: Evaluation, checked: Evaluation) -> dict[str, Any]:
    """The metadata of the model card. `check` has the evaluation of a few episodes, which a test repeats."""
    summary, protocol = evaluation.summary(), evaluation.protocol
    return {
        "library_name": "dqn",
        "license": "mit",
        "pipeline_tag": "reinforcement-learning",
        "tags": ["reinforcement-learning", "deep-reinforcement-learning", "q-learning", "atari", protocol.game],
        "model-index": [
            {
                "name": title,
                "results": [
                    {
                        "task": {"type": "reinforcement-learning", "name": "reinforcement-learning"},
                        "dataset": {"type": protocol.game, "name": protocol.game},
                        "metrics": [
                            {
                                "type": "mean_reward",
                                "name": "mean score of complete episodes",
                                "value": round(summary["mean"], 2),
                                "verified": False,
                                "args": {
                                    "interval_95": [round(summary["mean_low"], 2), round(summary["mean_high"], 2)],
                                    "episodes": protocol.episodes,
                                    "epsilon": protocol.epsilon,
                                    "seed": protocol.seed,
                                    "states": exported.metadata.counters.states,
                                    "processor": processor(),
                                },
                            }
                        ],
                    }
                ],
            }
        ],
        "check": {
            "episodes": checked.protocol.episodes,
            "epsilon": checked.protocol.epsilon,
            "seed": checked.protocol.seed,
            "scores": list(map(float, checked.scores)),
            "processor": processor(),
        },
    }


def read_front_matter(directory: Path) -> dict[str, Any]:
    """The metadata of the model card in a directory of `agents/`."""
    text = (directory / CARD).read_text().split("---\n")[1]
    found: dict[str, Any] = YAML(typ="safe", pure=True).load(text)
    return found


def chance_interval(evaluation: Evaluation, episodes: int) -> tuple[float, float]:
    """The range in which the mean of `episodes` other episodes is with a probability of 99.9 %, by the bootstrap."""
    draws = np.random.default_rng(0).choice(evaluation.scores, (20_000, episodes))
    low, high = np.percentile(draws.mean(axis=1), [0.05, 99.95])
    return float(low), float(high)


def directories(agents: Path = AGENTS) -> list[Path]:
    """The directories of all published agents."""
    return sorted(path.parent for path in agents.glob(f"*/{CONFIG}"))


def index(agents: Path = AGENTS) -> str:
    """The text of `agents/README.md`."""
    rows = []
    for directory in directories(agents):
        (model,) = read_front_matter(directory)["model-index"]
        (metric,) = model["results"][0]["metrics"]
        args = metric["args"]
        low, high = args["interval_95"]
        score = f"{metric['value']:,.2f} ({low:,.2f} to {high:,.2f})"
        game = model["results"][0]["dataset"]["name"]
        rows.append(f"| [{directory.name}]({directory.name}/{CARD}) | {game} | {score} | {args['states']:,} |")
    table = "\n".join(
        ["| agent | game | mean score (95 % interval) | states of training |", "|---|---|---|---|", *rows]
    )
    return f"""# Trained agents

Each directory is one agent, as `dqn export` writes it. `play`, `record`, `evaluate`, `inspect`, `export`,
`share` and `config` take one in place of a run:

```sh
dqn play agents/breakout
dqn record agents/breakout -o episode.gif
```

Scores are those of complete episodes at the `evaluation_epsilon` of the run. Model cards have their number, the seed,
the kind of processor and the command that trained the agent. `python -m benchmarks.agents RUN` adds the agent of a run
and writes this page.

{table}
"""


def main() -> None:
    """Publish the agent of the run that the arguments name, and write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.agents", description=__doc__.splitlines()[0])
    parser.add_argument("run", metavar="RUN", help="id or name of a run, or latest")
    parser.add_argument("--home", metavar="DIR", help="home of the run; DQN_HOME by default")
    parser.add_argument("--checkpoint", default="latest", help="latest, best, or the number of a cycle")
    options = parser.parse_args()
    if options.home:
        os.environ["DQN_HOME"] = options.home
    agent = open_agent(options.run, options.checkpoint)
    if agent.run is None:
        parser.error(f"{options.run} is not a run")
    preset = agent.run.tracking.get_run(agent.run.run_id).data.tags.get(PRESET, "fast")
    print(publish(agent, AGENTS, preset))
    (AGENTS / CARD).write_text(index())


if __name__ == "__main__":
    main()
