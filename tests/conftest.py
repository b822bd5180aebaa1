import fcntl
import json
import os
import shutil
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from ports import free_port

from storage.environment import NO_TELEMETRY, PREFECT_API_URL

# The tests use no external server, no network and no settings of the user.
os.environ.update(NO_TELEMETRY)
os.environ["OMP_WAIT_POLICY"] = "passive"  # threads that spin while they wait slow down other tests
AWS = ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN", "ENDPOINT_URL", "REGION", "DEFAULT_REGION", "PROFILE")
SETTINGS = ("DQN_HOME", "DQN_REPLAY", "DQN_CLUSTER", "MLFLOW_TRACKING_URI", "PREFECT_API_URL")
for name in (*SETTINGS, *(f"AWS_{name}" for name in AWS)):
    os.environ.pop(name, None)

SMALL = {"network": "small", "lanes": 2, "replay_states": 64, "batch_size": 16, "threads": 2, "epsilon": "1:0.1:1000"}


# Files that take over a quarter of a minute, the slowest first. Two processes work through the files in this order, so
# that both end at about the same time.
SLOW_FILES = (
    "integration/test_sweep_flow.py",
    "integration/test_serve.py",
    "integration/test_prefect_away.py",
    "flows/cli/test_app.py",
    "crash/test_kills.py",
    "storage/test_lease.py",
    "crash/test_command.py",
    "flows/sweeps/test_child_flows.py",
    "integration/test_train.py",
    "integration/test_server_away.py",
    "integration/test_inspect.py",
    "integration/test_notebook.py",
    "compat/test_releases.py",
    "dqn/envs/test_restoring.py",
    "dqn/cuda/test_fake_cycle.py",
    "storage/units/test_faults.py",
    "crash/test_power.py",
    "tasks/test_overlap.py",
    "tasks/test_options.py",
    "flows/commands/test_verify.py",
    "dqn/envs/test_lanes.py",
    "tasks/test_replay_cycles.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the slow files first."""
    order = {name: number for number, name in enumerate(SLOW_FILES)}
    root = Path(__file__).parent
    items.sort(key=lambda item: order.get(item.path.relative_to(root).as_posix(), len(order)))


@pytest.fixture
def small() -> dict[str, object]:
    """Configuration fields for a run whose cycle takes less than a second."""
    return dict(SMALL)


@pytest.fixture
def figure(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> Callable[[int, str, str], None]:
    """Records a row of docs/reliability-results.md: the number of the promise, the test, and its result.

    The row is written to the directory FIGURES, if that environment variable is set, from which
    `python -m benchmarks.reliability` collects it.
    """

    def record(promise: int, test: str, result: str) -> None:
        suffix = ""
        if os.environ.get("CRASH_OVERLAP") == "yes":  # these rows stand beside those without
            test, suffix = f"with overlap: {test}", "-overlap"
        if directory := os.environ.get("FIGURES"):
            with capsys.disabled():
                print(f"\n{promise}. {test}: {result}")
            path = Path(directory, f"{promise:02d}-{request.node.name}{suffix}.json")
            path.write_text(json.dumps({"promise": promise, "test": test, "result": result}))

    return record


@pytest.fixture(scope="session")
def shared_home(tmp_path_factory: pytest.TempPathFactory, mlflow_database: Path) -> Path:
    """One home for all tests that need MLflow."""
    home = tmp_path_factory.mktemp("home")
    shutil.copy(mlflow_database, home / "mlflow.db")
    return home


@pytest.fixture
def empty_home(tmp_path: Path, mlflow_database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without runs, which DQN_HOME names during the test."""
    home = tmp_path / "empty"
    home.mkdir()
    shutil.copy(mlflow_database, home / "mlflow.db")
    monkeypatch.setenv("DQN_HOME", str(home))
    return home


@pytest.fixture
def home(shared_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The shared home, which DQN_HOME names during the test."""
    monkeypatch.setenv("DQN_HOME", str(shared_home))
    return shared_home


@pytest.fixture(scope="session")
def trained_run(shared_home: Path, prefect_server: str) -> str:
    """The id of a run of four short cycles of Breakout with two evaluations, for tests that only read it."""
    from flows.train import train

    settings = {
        **SMALL,
        "network": "residual",
        "lanes": 8,
        "replay_states": 256,
        "batch_size": 64,
        "max_epochs": 1,
        "threads": 1,
    }
    settings |= {"evaluation_states": 512, "evaluation_episodes": 3, "episode_frames_limit": 400}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DQN_HOME", str(shared_home))
        return train(cycles=4, seed=1, name="looked-at", overrides=settings)


@pytest.fixture
def damageable_run(home: Path, trained_run: str) -> Iterator[str]:
    """The id of the trained run for a test that changes what is stored of it; everything is restored afterwards."""
    from storage.runs import open_run

    run = open_run(trained_run)
    directories = [run.replay.directory, run.artifacts.directory]
    copies = [Path(shutil.copytree(path, home / f"copy{number}")) for number, path in enumerate(directories)]
    with closing(sqlite3.connect(home / "mlflow.db")) as store, closing(sqlite3.connect(":memory:")) as backup:
        store.backup(backup)
        yield trained_run
        backup.backup(store)  # written into the same file, because MLflow has it open
    for directory, copy in zip(directories, copies, strict=True):
        shutil.rmtree(directory)
        copy.rename(directory)


@contextmanager
def shared(tmp_path_factory: pytest.TempPathFactory, name: str) -> Iterator[Path]:
    """A path for what the processes of the test session share; one process at a time is in the block."""
    directory = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        directory = directory.parent
    with (directory / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield directory / name


def made_once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """The database `name`, which the first process of the session makes, and the others wait for."""
    with shared(tmp_path_factory, f"{name}.db") as made:
        if not made.exists():
            making = made.with_name(f"{name}-making.db")
            make(making)
            with closing(sqlite3.connect(making)) as source, closing(sqlite3.connect(made)) as target:
                source.backup(target)
    return made


@pytest.fixture(scope="session")
def mlflow_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow store without runs, which tests copy into their homes, because creating its tables takes seconds."""
    from storage.settings import Settings
    from storage.tracking import Tracking

    def make(path: Path) -> None:
        Tracking(Settings(home=path.parent, tracking_uri=f"sqlite:///{path}"))

    return made_once(tmp_path_factory, "mlflow", make)


@pytest.fixture(scope="session")
def prefect_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database of a Prefect server, which tests copy, because creating its tables takes eight seconds."""
    import anyio.to_thread
    from prefect.server.database.alembic_commands import alembic_upgrade
    from prefect.settings import PREFECT_SERVER_DATABASE_CONNECTION_URL, temporary_settings

    def make(path: Path) -> None:
        with temporary_settings({PREFECT_SERVER_DATABASE_CONNECTION_URL: f"sqlite+aiosqlite:///{path}"}):
            anyio.run(anyio.to_thread.run_sync, alembic_upgrade)

    return made_once(tmp_path_factory, "prefect", make)


@pytest.fixture(scope="session")
def prefect_home(prefect_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """PREFECT_HOME for processes that start a Prefect server of their own."""
    home = tmp_path_factory.mktemp("prefect")
    shutil.copy(prefect_database, home / "prefect.db")
    return home


@pytest.fixture(scope="session")
def prefect_server(prefect_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The API of a Prefect server that all processes of the test session share: that of a single training.

    Flows of this process find it; processes that a test starts need the address in PREFECT_API_URL. The first process
    that needs the server starts it, and it ends with the last one.
    """
    from prefect.context import refresh_global_settings_context

    with shared(tmp_path_factory, "prefect-server") as address:
        if not address.exists():
            address.write_text(start_prefect_server(prefect_database))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(PREFECT_API_URL, address.read_text())
        refresh_global_settings_context()
    yield address.read_text()
    refresh_global_settings_context()


def start_prefect_server(database: Path) -> str:
    """Start a Prefect server that ends with the test session, and return the address of its API."""
    from flows.server.embedded import embedded_server_command
    from flows.server.processes import answers
    from storage.environment import embedded_server_environment

    home = Path(tempfile.mkdtemp(dir=database.parent))
    shutil.copy(database, home / "prefect.db")
    environment = {**embedded_server_environment(), "PREFECT_HOME": str(home)}
    environment["PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE"] = "1"  # tests read them at once
    port = free_port()
    session = os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()
    script = '"$@" & server=$!; (while kill -0 "$0"; do sleep 1; done; kill "$server") &'
    command = ["sh", "-c", script, str(session), *embedded_server_command(port)]
    with (home / "log").open("w") as log:
        subprocess.run(command, env=environment, stdout=log, stderr=log, start_new_session=True, check=True)
    deadline = time.monotonic() + 120
    while not answers(f"http://127.0.0.1:{port}/api/health"):
        assert time.monotonic() < deadline, (home / "log").read_text()
        time.sleep(0.2)
    return f"http://127.0.0.1:{port}/api"
