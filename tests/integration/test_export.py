"""Agents that are exported as files or registered in MLflow."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import mlflow
import numpy as np
import pytest
import torch

from dqn.envs.games import action_names
from dqn.evaluation.evaluation import game_settings
from dqn.metrics import LOSS_MEAN, TRAINING_CURVES
from dqn.randomness import episode_seeds
from flows.commands.agents import Agent, find_run_and_cycle, open_agent
from flows.commands.evaluation import evaluate_agent
from flows.commands.export import export_agent, share_agent, sharing_text
from flows.commands.inspection import inspect_by_name
from flows.commands.record import record_video
from flows.parameters import requested_config
from storage.errors import CorruptUnitError
from storage.formats.agent_export import read_export
from storage.runs import create_run
from storage.urls import REGISTERED_MODEL
from tasks.play_evaluation import play_evaluation

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
EXAMPLE, AGENT_EXAMPLE = EXAMPLES / "play_exported.py", EXAMPLES / "play_agent.py"

pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
def agent(trained_run: str, home: object) -> Agent:
    return open_agent(trained_run, "best")


@pytest.fixture
def directory(agent: Agent, tmp_path: Path) -> Path:
    return export_agent(agent, tmp_path / "agent")


def states() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 105, 80, 2), dtype=np.uint8)


def played(directory: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), str(directory)])
    return runpy.run_path(str(EXAMPLE))


def test_example_estimates_the_q_values_of_the_agent(
    agent: Agent, directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["README.md", "config.json", "training.json", "weights.safetensors"]
    assert sorted(path.name for path in directory.iterdir()) == files
    left = played(directory, monkeypatch)
    assert capsys.readouterr().out.startswith("an episode with a score of ")
    state = np.stack([left["frame"].numpy(), left["trace"].trunc().numpy()], axis=-1).astype(np.uint8)
    assert state[..., 0].std() > 10, "the state shows the game"
    expected = agent.learner.average_network(torch.from_numpy(state[None]))[0].detach().numpy()
    found = left["out"][-1][0].detach().numpy()
    assert np.allclose(found, expected, atol=1e-4), "to within rounding, as both are float32"


def test_example_is_short_and_independent() -> None:
    """It has at most 22 lines and imports nothing from this package."""
    lines = [line for line in EXAMPLE.read_text().splitlines()[1:] if line]
    assert len(lines) <= 22
    assert {line.split()[1].partition(".")[0] for line in lines if line.startswith(("import ", "from "))} == {
        "json",
        "sys",
        "pathlib",
        "gymnasium",
        "torch",
        "safetensors",
    }


def test_agent_example_plays_as_the_agent_is_evaluated(
    agent: Agent, directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In an environment whose emulator has the same seed, it gets the score of an evaluation of one episode."""
    assert len([line for line in AGENT_EXAMPLE.read_text().splitlines() if line]) <= 15
    protocol = agent.protocol(1, seed=0)
    expected, _ = play_evaluation(agent.learner, protocol, 1)
    seed = int(episode_seeds(game_settings(protocol, agent.metadata.config).seed, np.zeros(1, np.int64))[0])
    make_env = Agent.make_env

    def make_seeded(self: Agent) -> gymnasium.Env:
        env = make_env(self)
        env.unwrapped.ale.setInt("random_seed", seed)
        env.unwrapped.load_game()
        return env

    monkeypatch.setattr(Agent, "make_env", make_seeded)
    monkeypatch.setattr(sys, "argv", [str(AGENT_EXAMPLE), str(directory)])
    runpy.run_path(str(AGENT_EXAMPLE))
    assert capsys.readouterr().out == f"an episode with a score of {expected.scores[0]:g}\n"


def test_agent_refuses_another_directory(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is no directory that `dqn export` wrote: it has no config\.json"):
        Agent.load(tmp_path)


def test_commands_for_a_directory_import_no_mlflow() -> None:
    """The import of MLflow or Prefect takes seconds."""
    modules = ", ".join(f"flows.commands.{name}" for name in ("agents", "evaluation", "inspection", "play", "record"))
    code = f"import sys, {modules}; sys.exit(bool({{'mlflow', 'prefect'}} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_export_holds_the_checkpoint_and_detects_changes(agent: Agent, directory: Path) -> None:
    exported = read_export(directory)
    assert (exported.run_id, exported.checkpoint, exported.metadata) == (
        agent.run.run_id,
        agent.checkpoint_digest,
        agent.metadata,
    )
    assert exported.evaluation is not None
    trained = agent.metadata.counters.states
    wanted = agent.run.tracking.curves(agent.run.run_id, TRAINING_CURVES)
    begun = {name for name, curve in wanted.items() if curve.states[0] <= trained}
    assert exported.curves.keys() == begun and LOSS_MEAN in begun
    for name, curve in exported.curves.items():
        assert curve.states.tolist() == [states for states in wanted[name].states if states <= trained]
        assert np.allclose(curve.values, wanted[name].values[: len(curve.values)], rtol=1e-5)
    assert exported.weights.keys() == agent.weights.keys()
    assert all(bool((exported.weights[name] == weight).all()) for name, weight in agent.weights.items())
    weights = directory / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CorruptUnitError, match="its SHA-256 differs"):
        read_export(directory)
    about = json.loads((directory / "config.json").read_bytes())
    (directory / "config.json").write_text(json.dumps({**about, "format": 2}))
    with pytest.raises(CorruptUnitError, match="has format 2; this version reads 3 to 4"):
        read_export(directory)
    (directory / "config.json").write_text("[]")
    with pytest.raises(CorruptUnitError, match="is not an agent of this version"):
        read_export(directory)


def test_directory_is_an_agent_without_a_home(
    agent: Agent, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It plays as the run's checkpoint does, and nothing is stored."""
    protocol = agent.protocol(episodes=2)
    expected, _ = play_evaluation(agent.learner, protocol, 1)
    monkeypatch.setenv("DQN_HOME", str(tmp_path / "empty"))
    found = open_agent(str(directory))
    assert (found.run, found.metadata) == (None, agent.metadata)
    result = evaluate_agent(found, episodes=2)
    assert (result["scores"], result["run"], result["cycle"]) == (expected.scores, None, agent.metadata.counters.cycle)
    assert record_video(found, tmp_path / "episode.mp4")["score"] in expected.scores
    again = export_agent(found, tmp_path / "again")
    assert (again / "weights.safetensors").read_bytes() == (directory / "weights.safetensors").read_bytes()
    assert (again / "config.json").read_bytes() == (directory / "config.json").read_bytes()
    assert (again / "training.json").read_bytes() == (directory / "training.json").read_bytes()
    with pytest.raises(ValueError, match="has only one; leave it out"):
        open_agent(str(directory), "best")
    assert find_run_and_cycle(str(directory)) is None
    assert not (tmp_path / "empty").exists()


def test_directory_is_inspected_by_a_short_play(directory: Path, home: Path) -> None:
    """The report has the pictures of play, sweep and network, and the stored evaluation."""
    report = Path(inspect_by_name(str(directory), state="1:2", channel=3))
    assert report.parent.parent == home / "inspections" and report.parent.name.startswith("Breakout-")
    written = {path.name for path in report.parent.iterdir()}
    assert {"report.html", "scores.png", "highest-Q-value.png", "q-values.png", "outputs-6.png"} <= written
    text = report.read_text()
    assert "the first 128 steps of 8 episodes" in text and 'alt="score-curve"' in text
    with pytest.raises(ValueError, match=r"cycle is 3, but .* is an agent without stored cycles; leave it out"):
        inspect_by_name(str(directory), cycle=3)
    with pytest.raises(ValueError, match="state is '9'"):
        inspect_by_name(str(directory), state="9")


def test_directory_is_shared_with_its_evaluation(
    agent: Agent, directory: Path, tmp_path: Path, empty_home: Path
) -> None:
    """In a store without its run it becomes a model that is evaluated, recorded, inspected and exported."""
    result = share_agent(open_agent(str(directory)))
    assert (result["model"], result["champion"], result["before"]) == ("models:/Breakout/1", True, None)
    assert result["mean"] == read_export(directory).evaluation.summary()["mean"]
    assert share_agent(open_agent(str(directory)))["model"] == "models:/Breakout/1"
    champion = open_agent("models:/Breakout@champion")
    assert (champion.run, champion.checkpoint_digest) == (None, agent.checkpoint_digest)
    assert evaluate_agent(champion, episodes=1)["run"] is None
    again = export_agent(champion, tmp_path / "again")
    assert (again / "config.json").read_bytes() == (directory / "config.json").read_bytes()
    assert find_run_and_cycle("models:/Breakout@champion") is None


def test_directory_without_a_comparable_evaluation_is_not_shared(directory: Path, empty_home: Path) -> None:
    share_agent(open_agent(str(directory)))
    config = json.loads((directory / "config.json").read_bytes())
    (directory / "config.json").write_text(json.dumps({**config, "evaluation": None}))
    with pytest.raises(ValueError, match="contains no evaluation, so it cannot be shared; evaluate its run, and"):
        share_agent(open_agent(str(directory)))
    other = {**config, "evaluation": {**config["evaluation"], "seed": 8}}
    (directory / "config.json").write_text(json.dumps(other))
    with pytest.raises(ValueError, match=r"by another protocol \(Breakout-3x0.01-seed8\) than the champion \(game ALE"):
        share_agent(open_agent(str(directory)))


def test_export_refuses_an_existing_or_missing_directory(agent: Agent, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    for place in (tmp_path / "full", tmp_path / "full" / "mine", tmp_path / "missing" / "agent"):
        with pytest.raises(ValueError, match=r"cannot export to .*; it must be a new directory in one that exists"):
            export_agent(agent, place)
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_share_registers_a_champion_equal_to_its_checkpoint(
    agent: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The champion gives the same scores, video, export and predictions as the checkpoint."""
    first = share_agent(agent)
    assert first["champion"] and first["before"] is None
    again = share_agent(agent)
    assert (again["model"], again["champion"]) == (first["model"], True), "a checkpoint has one version"

    champion = open_agent("models:/Breakout@champion")
    assert (champion.checkpoint_digest, champion.metadata) == (agent.checkpoint_digest, agent.metadata)
    scores = evaluate_agent(agent)["scores"]
    assert evaluate_agent(champion)["scores"] == scores
    assert record_video(champion, tmp_path / "episode.mp4", epsilon=1.0)["steps"] > 50
    exported = read_export(export_agent(champion, tmp_path / "from-the-registry"))
    assert exported.checkpoint == agent.checkpoint_digest

    monkeypatch.delenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", agent.run.settings.tracking_uri)
    expected = agent.learner.average_network(torch.from_numpy(states())).detach().numpy()
    found = mlflow.pyfunc.load_model("models:/Breakout@champion").predict(states())
    assert found.shape == (3, 4) and np.allclose(found, expected, atol=1e-4)
    version = agent.run.tracking.client.get_model_version_by_alias("Breakout", "champion")
    assert "## Scores" in version.description and "mean" in version.description


def test_share_promotes_by_score_under_one_protocol(agent: Agent) -> None:
    """A lower score or another protocol does not replace the champion; `replace` does."""
    client = agent.run.tracking.client
    champion = share_agent(agent, replace=True)["model"]
    number = champion.rpartition("/")[2]
    other = open_agent(agent.run.name, "latest")
    if other.checkpoint_digest == agent.checkpoint_digest:
        other = open_agent(agent.run.name, "3")
    evaluate_agent(other)
    client.set_model_version_tag("Breakout", number, "dqn.mean_score", "1000.0")
    result = share_agent(other)
    assert not result["champion"] and f"stays {champion}, whose mean score 1000.00" in sharing_text(result)
    client.set_model_version_tag("Breakout", number, "dqn.mean_score", "-1.0")
    result = share_agent(other)
    assert result["champion"] and f"instead of {champion} (-1.00)" in sharing_text(result)

    wanted = {"game": "ALE/Breakout-v5", "episodes": 2, "epsilon": 0.5, "seed": 4, "episode_frames_limit": 400}
    number = result["model"].rpartition("/")[2]
    client.set_model_version_tag("Breakout", number, "dqn.protocol", json.dumps(wanted, sort_keys=True))
    options = "--game ALE/Breakout-v5 --episodes 2 --epsilon 0.5 --seed 4"
    with pytest.raises(ValueError, match=f"by another protocol; run `.*{options}` first, or use --replace"):
        share_agent(agent)
    evaluate_agent(agent, episodes=2, epsilon=0.5, seed=4)
    assert share_agent(agent)["before"]["model"] == result["model"]
    number = share_agent(agent, replace=True)["model"].rpartition("/")[2]
    client.set_model_version_tag(
        "Breakout", number, "dqn.protocol", json.dumps({**wanted, "episode_frames_limit": 9}, sort_keys=True)
    )
    with pytest.raises(ValueError, match="cut off after 9 frames, those of looked-at after 400"):
        share_agent(other)


def test_share_refuses_an_agent_without_evaluation() -> None:
    run = create_run(requested_config("fast", {"lanes": 2}), action_names("ALE/Breakout-v5"), "unproven", {})
    with pytest.raises(
        ValueError, match="unproven was not evaluated at cycle 0; evaluate it with `dqn evaluate unproven"
    ):
        share_agent(open_agent(run.name))


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("models:/Brekout@champion", r"there is no model models:/Brekout@champion; there are: .*`dqn share RUN`"),
        ("models:/Breakout/999", "there is no model models:/Breakout/999"),
        ("models:/Breakout@nobody", "there is no model"),
        ("models:/Breakout", "names no model; write it as models:/Breakout@champion"),
        ("models:/Breakout/latest", "names no model"),
    ],
)
def test_open_agent_names_an_unknown_model(address: str, message: str) -> None:
    assert address.startswith(REGISTERED_MODEL)
    with pytest.raises(ValueError, match=message):
        open_agent(address)
