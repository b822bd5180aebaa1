"""Give an agent away: as files, or through MLflow's model registry."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from dqn.evaluation.evaluation import Evaluation
from dqn.export.inference_spec import ExportedAgent, untrained_network
from dqn.export.model_card import model_card
from dqn.learning.networks import QNetwork
from flows.commands.agents import Agent
from storage.formats.agent_export import write_export
from storage.formats.evaluation import read_evaluation
from storage.model_registry import (
    FOLDER,
    MEAN,
    PROTOCOL,
    champion_address,
    champion_of,
    promote,
    protocol_text,
    share,
    shared_version,
)
from storage.selection import evaluation_kinds


def export_agent(agent: Agent, directory: Path) -> Path:
    """Write the weights as safetensors, a JSON configuration and a model card into a new `directory`, whole or not.

    Raises:
        ValueError: there is something at the directory, or no place for it.
        OSError: it cannot be written.
    """
    place = directory.absolute()
    if not place.parent.is_dir() or (place.exists() and not (place.is_dir() and not any(place.iterdir()))):
        raise ValueError(f"cannot export to {directory}; it must be a new directory in one that exists")
    exported = _exported(agent, _own(agent))
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=f".{place.name}-") as unfinished:
        folder = Path(unfinished) / "agent"
        folder.mkdir()
        write_export(folder, exported, model_card(exported))
        folder.rename(place)
    return directory


def share_agent(agent: Agent, replace: bool = False) -> dict[str, Any]:
    """Register an agent in MLflow under its game's name, and make it the champion if it is better than the last one.

    Better is a higher mean score by the protocol that the champion was evaluated by.

    Args:
        agent: from a checkpoint that was evaluated.
        replace: make it the champion in any case.

    Returns:
        The address of its version, whether it is the champion now, and why.

    Raises:
        ValueError: it was not evaluated, or not by the champion's protocol.
    """
    tracking, config = agent.run.tracking, agent.metadata.config
    evaluations = {protocol_text(found, config.episode_frames_limit): found for found in _evaluations(agent)}
    before = champion_of(tracking, config.game)
    wanted = before.tags[PROTOCOL] if before and not replace else None
    evaluation = evaluations.get(wanted) if wanted else next(iter(evaluations.values()), None)
    if evaluation is None:
        raise ValueError(_how_to_evaluate(agent, wanted if evaluations else None))
    exported = _exported(agent, evaluation)
    version = shared_version(tracking, exported)
    if version is None:
        card = model_card(exported, champion_address(config.game))
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / FOLDER).mkdir()
            write_export(Path(folder) / FOLDER, exported, card)
            version = share(agent.run, exported, _plain_network(exported), Path(folder), card)
    mean, address = evaluation.summary()["mean"], f"models:/{version.name}/{version.version}"
    result = {"model": address, "mean": mean, "champion": True, "before": None}
    if before:
        result["before"] = {"model": f"models:/{before.name}/{before.version}", "mean": float(before.tags[MEAN])}
        same = before.version == version.version
        result["champion"] = replace or same or mean > float(before.tags[MEAN])
    if result["champion"]:
        promote(tracking, version, exported)
    return result


def sharing_text(result: dict[str, Any]) -> str:
    """What `share_agent` returns, for reading."""
    model, before, mean = result["model"], result["before"], result["mean"]
    name = model.rpartition("/")[0]
    if not result["champion"]:
        return (
            f"{model} is shared; {name}@champion stays {before['model']}, whose mean score {before['mean']:.2f} is not "
            f"less than {mean:.2f}; --replace puts it there anyway"
        )
    instead = f", instead of {before['model']} ({before['mean']:.2f})" if before and before["model"] != model else ""
    return f"{model} is {name}@champion with a mean score of {mean:.2f}{instead}"


def _exported(agent: Agent, evaluation: Evaluation | None) -> ExportedAgent:
    return ExportedAgent(
        agent.run.run_id, agent.run.name, agent.checkpoint_digest, agent.metadata, agent.weights, evaluation
    )


def _plain_network(exported: ExportedAgent) -> QNetwork:
    network = untrained_network(exported.metadata)
    network.load_state_dict(exported.weights)
    return network.eval()


def _own(agent: Agent) -> Evaluation | None:
    """Its evaluation by the run's own protocol, or else by another one, if there is any."""
    return next(iter(_evaluations(agent)), None)


def _evaluations(agent: Agent) -> list[Evaluation]:
    """All evaluations of its checkpoint; by the run's own protocol first."""
    run, found = agent.run, []
    cycle = agent.metadata.counters.cycle
    for kind in evaluation_kinds(run):
        if cycle not in run.cycles(kind):
            continue
        unit = run.unit(kind, cycle)
        if unit.inputs == {"checkpoint": agent.checkpoint_digest}:
            found.append(read_evaluation(unit.directory))
    return found


def _how_to_evaluate(agent: Agent, protocol: str | None) -> str:
    command = f"dqn evaluate {agent.run.name} --checkpoint {agent.metadata.counters.cycle}"
    if protocol is None:
        return f"{agent.name} was not evaluated at cycle {agent.metadata.counters.cycle}; `{command}` does it"
    wanted, limit = json.loads(protocol), agent.metadata.config.episode_frames_limit
    if wanted["episode_frames_limit"] != limit:
        return (
            f"the champion's episodes were cut off after {wanted['episode_frames_limit']} frames, those of "
            f"{agent.name} after {limit}; their scores do not compare: share it with --replace or not at all"
        )
    options = " ".join(f"--{name} {wanted[name]}" for name in ("game", "episodes", "epsilon", "seed"))
    return f"the champion was evaluated by another protocol; do so with `{command} {options}`, or share with --replace"
