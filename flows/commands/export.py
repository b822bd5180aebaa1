"""Export an agent as files, or register it in MLflow's model registry."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from mlflow.entities.model_registry import ModelVersion

from dqn.evaluation.evaluation import Evaluation
from dqn.export.inference_spec import ExportedAgent, untrained_network
from dqn.export.model_card import model_card
from dqn.learning.networks import QNetwork
from dqn.metrics import TRAINING_CURVES
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
from storage.runs import open_tracking
from storage.selection import evaluation_kinds
from storage.tracking import Tracking


def export_agent(agent: Agent, directory: Path) -> Path:
    """Write the weights as safetensors, a JSON configuration and a model card into a new `directory`.

    The directory appears only when it is complete.

    Raises:
        ValueError: `directory` exists and is not empty, or its parent does not exist.
        OSError: the files cannot be written.
    """
    target = directory.absolute()
    is_free = not target.exists() or (target.is_dir() and not any(target.iterdir()))
    if not is_free or not target.parent.is_dir():
        raise ValueError(f"cannot export to {directory}; it must be a new directory in one that exists")
    exported = exported_of(agent, next(iter(_evaluations(agent)), None))
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as staging:
        files = Path(staging) / "agent"
        files.mkdir()
        write_export(files, exported, model_card(exported))
        files.rename(target)
    return directory


def share_agent(agent: Agent, replace: bool = False) -> dict[str, Any]:
    """Register an agent in MLflow under its game's name, and promote it to champion if it beats the present one.

    It beats the champion if its mean score is higher in an evaluation by the same protocol.

    Args:
        agent: its checkpoint must have been evaluated; an exported agent must contain its evaluation.
        replace: promote the agent whatever its score.

    Returns:
        `model`, the address of the registered version; `mean`, its mean score; `champion`, whether it is the champion
        now; `before`, the address and the mean score of the champion before, or None.

    Raises:
        ValueError: the checkpoint was not evaluated, or not by the champion's protocol.
    """
    tracking, config = agent.run.tracking if agent.run else open_tracking(), agent.metadata.config
    evaluations = {protocol_text(found, config.episode_frames_limit): found for found in _evaluations(agent)}
    before = champion_of(tracking, config.game)
    wanted = before.tags[PROTOCOL] if before and not replace else None
    evaluation = evaluations.get(wanted) if wanted else next(iter(evaluations.values()), None)
    if evaluation is None:
        raise ValueError(_how_to_evaluate(agent, wanted if evaluations else None))
    exported = exported_of(agent, evaluation)
    version = shared_version(tracking, exported) or _register(tracking, exported)
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
    """Format the result of `share_agent` for the terminal."""
    model, before, mean = result["model"], result["before"], result["mean"]
    name = model.rpartition("/")[0]
    if not result["champion"]:
        return (
            f"{model} is registered; {name}@champion stays {before['model']}, whose mean score {before['mean']:.2f} "
            f"is not less than {mean:.2f}; promote the new version anyway with --replace"
        )
    instead = f", instead of {before['model']} ({before['mean']:.2f})" if before and before["model"] != model else ""
    return f"{model} is {name}@champion with a mean score of {mean:.2f}{instead}"


def _register(tracking: Tracking, exported: ExportedAgent) -> ModelVersion:
    card = model_card(exported, champion_address(exported.metadata.config.game))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / FOLDER).mkdir()
        write_export(Path(folder) / FOLDER, exported, card)
        return share(tracking, exported, _plain_network(exported), Path(folder), card)


def exported_of(agent: Agent, evaluation: Evaluation | None) -> ExportedAgent:
    """What is exported of an agent: of a run its checkpoint, `evaluation` and the curves of its training until then."""
    run = agent.run
    if run is None:
        assert agent.exported is not None
        return agent.exported
    found = run.tracking.curves(run.run_id, TRAINING_CURVES)
    until = {name: curve.until(agent.metadata.counters.states) for name, curve in found.items()}
    curves = {name: curve for name, curve in until.items() if len(curve.values)}
    return ExportedAgent(
        run.run_id, run.name, agent.checkpoint_digest, agent.metadata, agent.weights, evaluation, curves
    )


def _plain_network(exported: ExportedAgent) -> QNetwork:
    network = untrained_network(exported.metadata)
    network.load_state_dict(exported.weights)
    return network.eval()


def _evaluations(agent: Agent) -> list[Evaluation]:
    """All evaluations of the agent's checkpoint; the one by the run's own protocol comes first."""
    run, found = agent.run, list[Evaluation]()
    if run is None:
        carried = agent.exported.evaluation if agent.exported else None
        return [carried] if carried else []
    cycle = agent.metadata.counters.cycle
    for kind in evaluation_kinds(run):
        if cycle not in run.cycles(kind):
            continue
        unit = run.unit(kind, cycle)
        if unit.inputs == {"checkpoint": agent.checkpoint_digest}:
            found.append(read_evaluation(unit.directory))
    return found


def _how_to_evaluate(agent: Agent, protocol: str | None) -> str:
    if agent.run is None:
        return _how_to_share_exported(agent, protocol)
    command = f"dqn evaluate {agent.name} --checkpoint {agent.metadata.counters.cycle}"
    if protocol is None:
        return f"{agent.name} was not evaluated at cycle {agent.metadata.counters.cycle}; evaluate it with `{command}`"
    wanted, limit = json.loads(protocol), agent.metadata.config.episode_frames_limit
    if wanted["episode_frames_limit"] != limit:
        return (
            f"the champion's episodes were cut off after {wanted['episode_frames_limit']} frames, those of "
            f"{agent.name} after {limit}, so their scores cannot be compared; promote it anyway with --replace"
        )
    options = " ".join(f"--{name} {wanted[name]}" for name in ("game", "episodes", "epsilon", "seed"))
    return f"the champion was evaluated by another protocol; run `{command} {options}` first, or use --replace"


def _how_to_share_exported(agent: Agent, protocol: str | None) -> str:
    """What an agent lacks of which only the files are known."""
    if protocol is None:
        return f"{agent.name} contains no evaluation, so it cannot be shared; evaluate its run, and export it again"
    (carried,) = _evaluations(agent)
    wanted = json.loads(protocol)
    named = ", ".join(f"{name} {wanted[name]}" for name in ("game", "episodes", "epsilon", "seed"))
    return (
        f"{agent.name} was evaluated by another protocol ({carried.protocol}) than the champion ({named}, at most "
        f"{wanted['episode_frames_limit']} frames), so their scores cannot be compared; use --replace"
    )
