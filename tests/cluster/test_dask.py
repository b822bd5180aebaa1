"""A training on a Dask cluster has the digest of the same training on one machine, whichever process dies."""

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

CYCLES, OUTAGE_SECONDS = 3, 10
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
    """A Prefect server and a Dask scheduler, without workers."""
    yield dask
    for name in set(dask.running) - {"prefect", "scheduler"}:
        dask.kill(name)
    with Client(dask.address) as client:
        wait_until(lambda: not client.scheduler_info()["workers"], "the scheduler removes the dead workers")


@pytest.fixture(scope="module", params=["no", "yes"])
def train(request: pytest.FixtureRequest) -> list[str]:
    """The command of a training with and without overlap."""
    return [*TRAIN, "--set", f"overlap={request.param}"]


@pytest.fixture(scope="module")
def undisturbed_digest(dask: Cluster, train: list[str]) -> str:
    """The digest of the same training in one process, with local storage and without faults."""
    name = f"alone-{train[-1]}"
    done = subprocess.run([*train, "--name", name], env=dask.environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return digest(name, dask.environment)


def digest(run: str, environment: Mapping[str, str]) -> str:
    done = subprocess.run([*DQN, "verify", run, "--json"], env=environment, capture_output=True, text=True)
    found = json.loads(done.stdout)
    assert found["problems"] == [] and found["cycle"] == CYCLES
    return str(found["digest"])


def drafts(home: Path, cycle: int) -> set[str]:
    """The kinds of experience of a cycle whose play is in progress."""
    return {path.name.partition(f"-{cycle:05d}")[0] for path in home.glob(f"staging/*/experience-*-{cycle:05d}-*")}


def test_dead_worker_and_s3_outage_keep_the_digest(
    cluster: Cluster, servers: Servers, train: list[str], undisturbed_digest: str, tmp_path: Path
) -> None:
    """A worker is killed while it plays, and S3 is unreachable while experience is written."""

    def machine(name: str) -> dict[str, str]:
        """The environment of a machine that shares only S3, MLflow and the cluster with the others."""
        return {**cluster.settings, **servers.environment, "DQN_HOME": str(tmp_path / name)}

    def interrupt_s3() -> None:
        servers.s3.go_away()
        time.sleep(OUTAGE_SECONDS)
        servers.s3.come_back()
        restored.set()

    def judge(method: str, path: str) -> str:
        """Cut off the first upload of experience of the third cycle, and start the outage."""
        if method == "PUT" and "/experience-" in path and "/00003/" in path and outage:
            outage.pop().start()
            return CUT
        return PASS

    run = f"disturbed-{train[-1]}"
    outage, restored = [threading.Thread(target=interrupt_s3)], threading.Event()
    for name, resource in (("first", "collector"), ("second", "collector"), ("third", "optimizer")):
        cluster.start_worker(name, resource, machine(name))
    servers.s3.judge = judge
    try:
        trainer = cluster.start("trainer", *train, "--name", run, environment=machine("trainer"))
        wait_until(
            lambda: drafts(tmp_path / "second", 2) or trainer.poll() is not None, "play of the second cycle", every=0.01
        )
        assert trainer.poll() is None, cluster.output("trainer")
        cluster.kill("second")
        assert trainer.wait(600) == 0, cluster.output("trainer")
    finally:
        servers.s3.judge = lambda method, path: PASS
    assert restored.is_set()
    assert digest(run, machine("reader")) == undisturbed_digest
    with Client(cluster.address) as client:
        assert {worker["id"] for worker in client.scheduler_info()["workers"].values()} == {"first", "third"}
    assert not list(tmp_path.glob("*/replay"))  # only S3 stores experience


def test_training_resumes_locally_after_the_scheduler_dies(
    cluster: Cluster, home: Path, train: list[str], undisturbed_digest: str
) -> None:
    run = f"orphaned-{train[-1]}"
    cluster.start_worker("first", "collector")
    trainer = cluster.start("trainer", *train, "--name", run, environment=cluster.settings)
    wait_until(lambda: drafts(home, 2) or trainer.poll() is not None, "play of the second cycle", every=0.01)
    assert trainer.poll() is None, cluster.output("trainer")
    cluster.kill("scheduler")
    cluster.kill("first")
    assert trainer.wait(300) == 1
    error = cluster.output("trainer").strip().splitlines()[-1]
    assert (
        error.startswith("dqn: the Dask scheduler tcp://127.0.0.1:")
        and "does not answer (the connection was lost)" in error
    )
    cluster.start_scheduler()
    resumed = subprocess.run(
        [*DQN, "train", "--resume", run, "--cycles", str(CYCLES)], env=cluster.environment, capture_output=True
    )
    assert resumed.returncode == 0
    assert digest(run, cluster.environment) == undisturbed_digest


def test_optimizer_processes_of_a_worker_share_each_batch(cluster: Cluster) -> None:
    """The digest is that of local optimizer processes, and the worker ends its processes after the training."""
    more = ["--set", "optimizer_processes=2", "--set", "replay_states=800", "--set", "overlap=yes", "--name"]
    local = subprocess.run([*TRAIN, *more, "shared-local"], env=cluster.environment, capture_output=True, text=True)
    assert local.returncode == 0, local.stderr
    cluster.start_worker("first", "collector")
    cluster.start_worker("third", "optimizer", None, "--no-nanny")
    trainer = cluster.start("trainer", *TRAIN, *more, "shared", environment=cluster.settings)
    assert trainer.wait(600) == 0, cluster.output("trainer")
    assert digest("shared", cluster.environment) == digest("shared-local", cluster.environment)
    worker = psutil.Process(cluster.running["third"].pid)
    assert not [each for each in worker.children(recursive=True) if "spawn_main" in " ".join(each.cmdline())]


def test_missing_collector_fails_with_the_worker_command(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.start_worker("third", "optimizer")
    command = ["-c", "import flows.runners; flows.runners.WORKER_SECONDS = 2; from flows.cli import main; main()"]
    done = subprocess.run([DQN[0], *command, *TRAIN[len(DQN) :]], env=cluster.settings, capture_output=True, text=True)
    assert done.returncode == 1
    assert "offers the resource collector; start one: dask worker tcp://" in done.stderr.strip().splitlines()[-1]


def test_worker_without_access_to_the_run_is_an_error(cluster: Cluster, tmp_path: Path) -> None:
    cluster.start_worker("stranger", "collector", {**cluster.environment, "DQN_HOME": str(tmp_path)})
    done = subprocess.run([*TRAIN, "--name", "unseen"], env=cluster.settings, capture_output=True, text=True)
    assert done.returncode == 1
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("dqn: ")]
    assert "cannot work for run" in error and "DQN_HOME" in error
