"""Homes of earlier releases are opened, and their runs resumed, by this one.

`make_home.py` makes such a home with the code of a release; `expected.json` and `expected.npz` hold what that code
computed two cycles later.
"""

from __future__ import annotations

import json
import sqlite3
import tarfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from dqn.config import make_config
from dqn.learning.networks import make_network
from flows.commands.agents import open_agent
from flows.commands.evaluation import evaluate_agent
from flows.commands.inspection import inspect_run
from flows.commands.verify import verify_run
from flows.train import train
from storage.formats.agent_export import read_export
from storage.formats.evaluation import read_evaluation
from storage.run_list import list_runs
from storage.runs import StoredRun, open_run, open_tracking
from storage.selection import find_checkpoint
from storage.units.unit import CHECKPOINT, EVALUATION

COMPAT = Path(__file__).parent
RELEASES = sorted(path.parent.name for path in COMPAT.glob("*/home.tar.xz"))
ORIGINAL = "/tmp/dqn-compat-home"  # where make_home.py made it
EVERY = 97  # of that many weights one is in expected.npz


@pytest.fixture(scope="module", params=RELEASES)
def release(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A copy of a release's home, which is the home in force, and what is expected of it."""
    folder = tmp_path_factory.mktemp("release")
    with tarfile.open(COMPAT / request.param / "home.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    home = folder / "home"
    with closing(sqlite3.connect(home / "mlflow.db")) as store:
        for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
            store.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (ORIGINAL, str(home)))
        store.commit()
    expected = json.loads((COMPAT / request.param / "expected.json").read_text())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DQN_HOME", str(home))
        yield SimpleNamespace(home=home, expected=expected, folder=COMPAT / request.param)


@pytest.fixture(params=["plain", "sharded"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def stored(name: str) -> StoredRun:
    return open_run(open_tracking().find_run(name).info.run_id)


def test_runs_are_listed(release: SimpleNamespace) -> None:
    rows = {row.name: row for row in list_runs()}
    assert set(rows) == {"plain", "sharded"}
    for name, row in rows.items():
        assert (row.status, row.states) == ("finished", release.expected[name]["states"])


def test_run_is_verified(release: SimpleNamespace, name: str) -> None:
    result = verify_run(stored(name), replay=name == "plain")
    found = {"digest": result.digest, "cycle": result.cycle, "units": result.units, "metrics": result.metrics}
    assert (result.problems, found) == ([], release.expected[name]["verified"])


def test_stored_evaluation_is_read(release: SimpleNamespace) -> None:
    run = stored("plain")
    evaluation = read_evaluation(find_checkpoint(run, "best") and run.unit(EVALUATION, 3).directory)
    assert (evaluation.protocol.episodes, evaluation.protocol.epsilon, len(evaluation.scores)) == (2, 0.01, 2)


def test_checkpoint_is_evaluated(release: SimpleNamespace, name: str) -> None:
    result = evaluate_agent(open_agent(name, "3"), episodes=1, seed=5)
    assert (result["cycle"], result["epsilon"], len(result["scores"])) == (3, 0.01, 1)


def test_exported_agent_plays(release: SimpleNamespace) -> None:
    exported, agent = read_export(release.home / "exported"), open_agent("plain", "3")
    assert exported.checkpoint == agent.checkpoint_digest
    for key, weight in exported.weights.items():
        assert torch.equal(weight, agent.weights[key]), key


def test_newest_cycle_is_inspected(release: SimpleNamespace) -> None:
    report = Path(inspect_run(stored("sharded")))
    assert "cycle 3" in report.read_text()


def test_resumed_run_has_the_weights_of_its_release(release: SimpleNamespace, name: str, prefect_server: str) -> None:
    """Equal to within rounding: another processor may add in another order."""
    train(resume=name, cycles=5)
    run = stored(name)
    unit = run.unit(CHECKPOINT, 5)
    with np.load(release.folder / "expected.npz") as expected:
        for key, weight in run.checkpoint(unit).weights.items():
            np.testing.assert_allclose(weight.numpy().reshape(-1)[::EVERY], expected[f"{name}/{key}"], 1e-4, 1e-6)
    metrics: dict[str, Any] = {metric.name: metric.value for metric in unit.metrics}
    assert metrics == pytest.approx(release.expected[name]["metrics"], rel=1e-4, abs=1e-6)
    assert verify_run(run).problems == []


@pytest.mark.parametrize("network", ["tutorial", "nips", "nature", "small", "residual"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("release_name", RELEASES)
def test_network_computes_as_in_its_release(release_name: str, network: str, normalize: bool) -> None:
    expected = json.loads((COMPAT / release_name / "networks.json").read_text())
    expected = expected[f"{network}{'' if normalize else ', not normalized'}"]
    states = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (2, 105, 80, 2), np.uint8)
    config = make_config("fast", {"network": network, "normalize": normalize, "scale_input": normalize})
    made = make_network(config, 4)
    weights = made.state_dict()
    assert {key: list(weight.shape) for key, weight in weights.items()} == expected["weights"]
    assert {key: list(weight.stride()) for key, weight in weights.items()} == expected["strides"]
    assert [key for key, _ in made.named_parameters()] == expected["parameters"]  # the order of the optimizer's state
    with torch.no_grad():
        q_values = made(torch.from_numpy(states)).numpy()
    np.testing.assert_allclose(q_values, expected["q_values"], 1e-4, 1e-4)
