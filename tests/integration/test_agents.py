"""The published agents in `agents/`, each of which plays a few episodes, and the script that publishes one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from ruamel.yaml import YAML

from benchmarks import agents
from dqn.config import make_config
from dqn.config_file import read_fields
from dqn.evaluation.evaluation import Evaluation, Protocol
from flows import cli
from flows.commands.agents import Agent, open_agent
from storage.formats.agent_export import read_export


def test_table_of_agents_is_that_of_the_directories() -> None:
    assert (agents.AGENTS / "README.md").read_text() == agents.index()


@pytest.mark.parametrize("directory", agents.directories(), ids=lambda path: path.name)
def test_published_agent_has_its_published_scores(directory: Path) -> None:
    """To the digit on the same kind of processor, elsewhere in the range of chance."""
    check_scores(directory)
    files = {path.name for path in directory.iterdir()}
    assert files == {"README.md", "config.json", "weights.safetensors", "training.json", "episode.gif"}
    assert (directory / "weights.safetensors").stat().st_size <= agents.MOST_BYTES
    assert (directory / "episode.gif").stat().st_size <= 3_000_000


def test_configuration_of_an_agent_is_that_of_its_training_on_any_machine(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["dqn", "config", "agents/pong"])
    with pytest.raises(SystemExit):
        cli.main()
    config = make_config("fast", read_fields(capsys.readouterr().out, "pong.yaml").fields)
    assert (config.game, config.td_lambda, config.batch_size) == ("ALE/Pong-v5", 0.8, 64)
    assert (config.device, config.precision, config.threads) == ("auto", "auto", 0)


def check_scores(directory: Path) -> None:
    agent, check = Agent.load(directory), agents.read_front_matter(directory)["check"]
    found = agents.evaluate(agent, agent.protocol(check["episodes"], check["epsilon"], seed=check["seed"]))
    if check["processor"] == agents.processor():
        assert found.scores == check["scores"]
    else:
        low, high = agents.chance_interval(read_export(directory).evaluation, check["episodes"])
        assert low <= found.summary()["mean"] <= high


@pytest.mark.usefixtures("home")
def test_publish_writes_an_agent_with_its_card(
    trained_run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agents, "EPISODES", 4)
    (tmp_path / "breakout").mkdir()
    (tmp_path / "breakout" / "of-another-agent").touch()
    directory = agents.publish(open_agent(trained_run), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["breakout"]
    assert "of-another-agent" not in [path.name for path in directory.iterdir()], "what was there is replaced"
    exported = read_export(directory)
    assert {weight.dtype for weight in exported.weights.values()} == {torch.bfloat16, torch.float32}
    assert exported.evaluation.protocol == Protocol("ALE/Breakout-v5", 4, 0.01)
    text = (directory / "README.md").read_text()
    metadata = YAML(typ="safe", pure=True).load(text.split("---\n")[1])
    (metric,) = metadata["model-index"][0]["results"][0]["metrics"]
    assert metric["value"] == round(exported.evaluation.summary()["mean"], 2)
    assert metric["args"]["episodes"] == 4 and metric["args"]["processor"] == agents.processor()
    assert "dqn train --preset fast --game ALE/Breakout-v5 --states" in text and "![The agent plays" in text
    with Image.open(directory / "episode.gif") as gif:
        assert gif.is_animated
    check_scores(directory)
    assert f"| [breakout](breakout/README.md) | ALE/Breakout-v5 | {metric['value']:,.2f} (" in agents.index(tmp_path)


@pytest.mark.usefixtures("home")
def test_publish_keeps_float32_if_the_score_differs(trained_run: str, tmp_path: Path) -> None:
    agent = open_agent(trained_run)

    def scored(played: Agent, protocol: Protocol) -> Evaluation:
        is_rounded = torch.bfloat16 in {weight.dtype for weight in played.weights.values()}
        return Evaluation(protocol, [1.0 if is_rounded else 5.0] * protocol.episodes, [9] * protocol.episodes, 0)

    exported = read_export(agents.publish(agent, tmp_path, run_evaluation=scored))
    assert {weight.dtype for weight in exported.weights.values()} == {torch.float32}
    assert exported.evaluation.scores[0] == 5.0


def test_training_command_names_what_differs_from_the_preset() -> None:
    config = make_config("fast", {"game": "ALE/Pong-v5", "discount": 0.98, "epsilon": "1:0.1:1000", "threads": 2})
    command = agents.training_command(config.model_copy(update={"seed": 3}), 400_000, "fast")
    first, *settings = command.split(" --set ")
    assert first == "dqn train --preset fast --game ALE/Pong-v5 --states 400000 --seed 3"
    assert sorted(settings) == ["discount=0.98", "epsilon=1:0.1:1000"]
