"""A training on a Dask cluster is the training of one machine, whatever of the cluster dies."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
import pytest
from distributed import Client
from processes import DQN, Cluster, wait_until
from s3_server import CUT, PASS
from servers import Servers

pytestmark = pytest.mark.cluster

CYCLES, AWAY_SECONDS = 3, 10
FIELDS = {"lanes": 8, "replay_states": 8_000, "batch_size": 64, "max_epochs": 1, "network": "small"}
FIELDS |= {"threads": 1, "precision": "float32", "episode_frames_limit": 2_000}
TRAIN = [*DQN, "train", "--cycles", str(CYCLES), "--shards", "2"]
TRAIN += [option for name, value in FIELDS.items() for option in ("--set", f"{name}={value}")]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def dask(tmp_path_factory: pytest.TempPathFactory, home: Path) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("cluster"), {"DQN_HOME": str(home)})
    try:
        cluster.start_servers()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def cluster(dask: Cluster) -> Iterator[Cluster]:
    """A Prefect server and a scheduler, without any workers yet."""
    yield dask
    for name in set(dask.running) - {"prefect", "scheduler"}:
        dask.kill(name)
    with Client(f"tcp://{dask.scheduler}") as client:
        wait_until(lambda: not client.scheduler_info()["workers"], "the scheduler to notice that the workers are gone")


@pytest.fixture(scope="module")
def alone(dask: Cluster) -> str:
    """The digest of the same training in one process with nothing but its home, undisturbed."""
    done = subprocess.run([*TRAIN, "--name", "alone"], env=dask.environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return digest("alone", dask.environment)


def digest(run: str, environment: Mapping[str, str]) -> str:
    done = subprocess.run([*DQN, "verify", run, "--json"], env=environment, capture_output=True, text=True)
    found = json.loads(done.stdout)
    assert found["problems"] == [] and found["cycle"] == CYCLES
    return str(found["digest"])


def playing(home: Path, cycle: int) -> set[str]:
    """The kinds of experience of a cycle that are being played."""
    return {path.name.partition(f"-{cycle:05d}")[0] for path in home.glob(f"staging/*/experience-*-{cycle:05d}-*")}


def test_a_worker_dies_while_it_plays_and_s3_is_away_while_it_is_written_to(
    cluster: Cluster, servers: Servers, alone: str, tmp_path: Path
) -> None:
    def machine(name: str) -> dict[str, str]:
        """The environment of a machine that shares only S3 and MLflow with the others."""
        return {**cluster.settings, **servers.environment, "DQN_HOME": str(tmp_path / name)}

    def be_away() -> None:
        servers.s3.go_away()
        time.sleep(AWAY_SECONDS)
        servers.s3.come_back()
        came_back.set()

    def judge(method: str, path: str) -> str:
        """Cut off the first writing of experience of the third cycle, and be away then."""
        if method == "PUT" and "/experience-" in path and "/00003/" in path and outage:
            outage.pop().start()
            return CUT
        return PASS

    outage, came_back = [threading.Thread(target=be_away)], threading.Event()
    for name, resource in (("first", "collector"), ("second", "collector"), ("third", "optimizer")):
        cluster.start_worker(name, resource, machine(name))
    servers.s3.judge = judge
    try:
        trainer = cluster.start("trainer", *TRAIN, "--name", "disturbed", environment=machine("trainer"))
        wait_until(lambda: playing(tmp_path / "second", 2) or trainer.poll() is not None, "play", every=0.01)
        assert trainer.poll() is None, cluster.said("trainer")
        cluster.kill("second")
        assert trainer.wait(600) == 0, cluster.said("trainer")
    finally:
        servers.s3.judge = lambda method, path: PASS
    assert came_back.is_set()
    assert digest("disturbed", machine("reader")) == alone
    with Client(f"tcp://{cluster.scheduler}") as client:
        assert {worker["id"] for worker in client.scheduler_info()["workers"].values()} == {"first", "third"}
    assert not list(tmp_path.glob("*/replay")), "nothing but S3 holds experience"


def test_the_scheduler_dies_and_the_training_is_resumed_without_a_cluster(
    cluster: Cluster, home: Path, alone: str
) -> None:
    cluster.start_worker("first", "collector")
    trainer = cluster.start("trainer", *TRAIN, "--name", "orphaned", environment=cluster.settings)
    wait_until(lambda: playing(home, 2) or trainer.poll() is not None, "the second cycle", every=0.01)
    assert trainer.poll() is None, cluster.said("trainer")
    cluster.kill("scheduler")
    cluster.kill("first")
    assert trainer.wait(300) == 1
    said = cluster.said("trainer").strip().splitlines()[-1]
    assert said.startswith("dqn: the Dask scheduler tcp://127.0.0.1:") and "does not answer" in said
    cluster.start_scheduler()
    resumed = subprocess.run(
        [*DQN, "train", "--resume", "orphaned", "--cycles", str(CYCLES)], env=cluster.environment, capture_output=True
    )
    assert resumed.returncode == 0
    assert digest("orphaned", cluster.environment) == alone


def test_processes_of_a_worker_share_every_batch(cluster: Cluster) -> None:
    more = ["--set", "optimizer_processes=2", "--set", "replay_states=800", "--name"]
    alone = subprocess.run([*TRAIN, *more, "shared-alone"], env=cluster.environment, capture_output=True, text=True)
    assert alone.returncode == 0, alone.stderr
    cluster.start_worker("first", "collector")
    cluster.start_worker("third", "optimizer", None, "--no-nanny")
    trainer = cluster.start("trainer", *TRAIN, *more, "shared", environment=cluster.settings)
    assert trainer.wait(600) == 0, cluster.said("trainer")
    assert digest("shared", cluster.environment) == digest("shared-alone", cluster.environment)
    worker = psutil.Process(cluster.running["third"].pid)
    assert not [each for each in worker.children(recursive=True) if "spawn_main" in " ".join(each.cmdline())]


def test_nobody_offers_to_play(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.start_worker("third", "optimizer")
    command = ["-c", "import flows.runners; flows.runners.WORKER_SECONDS = 2; from flows.cli import main; main()"]
    done = subprocess.run([DQN[0], *command, *TRAIN[len(DQN) :]], env=cluster.settings, capture_output=True, text=True)
    assert done.returncode == 1
    assert "offers the resource collector; start one: dask worker tcp://" in done.stderr.strip().splitlines()[-1]


def test_a_worker_that_does_not_see_the_runs_is_told(cluster: Cluster, tmp_path: Path) -> None:
    cluster.start_worker("stranger", "collector", {**cluster.environment, "DQN_HOME": str(tmp_path)})
    done = subprocess.run([*TRAIN, "--name", "unseen"], env=cluster.settings, capture_output=True, text=True)
    assert done.returncode == 1
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("dqn: ")]
    assert "cannot work for run" in said and "DQN_HOME" in said
