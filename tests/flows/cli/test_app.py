import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest
from prefect.exceptions import ParameterTypeError

import dqn
from flows import cli
from flows.cli.train import invalid_parameters
from storage.runs import create_run, open_run, open_tracking

DQN = [sys.executable, "-m", "flows.cli"]
PRINT_HELP = "import sys; from flows.cli import app; app.app(['--help'], standalone_mode=False)"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["dqn", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return int(stopped.value.code or 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--game", "ALE/Brekout-v5"], "did you mean ALE/Breakout-v5"),
        (["train", "--game", "pong"], "did you mean ALE/Pong-v5"),
        (["train", "--states", "-5"], "states is -5; it must be at least 1"),
        (["train", "--states", "many"], "'--states'"),
        (["train", "--cycles", "0"], "cycles is 0; it must be at least 1"),
        (["train", "--states", "5", "--cycles", "5"], "not both"),
        (["train", "--seed", "-1"], "seed is -1"),
        (["train", "--preset", "quick"], "'fast', 'tutorial'"),
        (["train", "--set", "lerning_rate=1"], "did you mean learning_rate"),
        (["train", "--set", "lanes"], "write it as field=value"),
        (["train", "--set", "lanes=0"], "lanes is '0'"),
        (["train", "--set", "game=ALE/Pong-v5"], "game has an option of its own: --game ALE/Pong-v5"),
        (["train", "--set", "seed=3"], "seed has an option of its own: --seed 3"),
        (["train", "--set", "epsilon=2"], "a probability is at most 1"),
        (["train", "--set", "network=resnet"], "'tutorial', 'nips', 'nature', 'small' or 'residual'"),
        (["train", "--resume", "nothing"], "no run 'nothing'"),
        (["train", "--resume", "lastest"], "did you mean"),
        (["train", "--config", "none.yaml"], "cannot read the configuration none.yaml: No such file"),
        (["config"], "give a run, such as `dqn config latest`, or a recipe, such as `dqn config --preset fast`"),
        (["train", "--resume", "latest", "--set", "lanes=3"], "a resumed run keeps its lanes"),
        (["train", "--sats", "5"], "No such option"),
        (["evaluate"], "Missing argument 'RUN'"),
        (["evaluate", "nothing"], "no run 'nothing'"),
        (["evaluate", "latest", "--episodes", "0"], "episodes is 0; it must be at least 1"),
        (["evaluate", "latest", "--epsilon", "2"], "epsilon is 2.0"),
        (["evaluate", "latest", "--game", "ALE/Pong-v5"], "was trained with NOOP, FIRE, RIGHT, LEFT"),
        (["evaluate", "latest", "--checkpoint", "7"], "there is no checkpoint of cycle 7; run for-the-commands has"),
        (["evaluate", "latest", "--checkpoint", "best"], "was not evaluated yet"),
        (["evaluate", "latest", "--checkpoint", "worst"], "must be latest, best or the number of a cycle"),
        (["evaluate", "latest", "--seed", "-1"], "seed is -1"),
        (["evaluate", "models:/Breakout"], "names no model"),
        (["evaluate", "models:/Nothing@champion"], "there is no model models:/Nothing@champion"),
        (["inspect", "models:/Nothing@champion"], "there is no model models:/Nothing@champion"),
        (["record", "latest", "-o", "missing/episode.mp4"], "cannot record to missing/episode.mp4"),
        (["play", "latest", "--epsilon", "7"], "epsilon is 7.0"),
        (["export", "latest"], "Missing option '--out'"),
        (["export", "latest", "-o", "missing/agent"], "cannot export to missing/agent"),
        (["share", "nothing"], "no run 'nothing'"),
        (["share", "models:/Breakout@champion"], "models:/Breakout@champion is registered already; give a run"),
        (["share", "latest"], "was not evaluated yet; `dqn evaluate for-the-commands` does it"),
        (["compare"], "Missing argument 'RUN RUN ...'"),
        (["compare", "latest"], "compare takes 2 to 8 different runs"),
        (["compare", "latest", "nothing"], "no run 'nothing'"),
        (["inspect", "nothing"], "no run 'nothing'"),
        (["inspect", "latest", "--cycle", "3"], "nothing is stored of cycle 3"),
        (["ui", "--port", "70000"], "it must be from 1 to 65535"),
        (["fly"], "No such command"),
    ],
)
def test_command_reports_a_mistake_in_one_line_with_status_2(
    arguments: list[str],
    message: str,
    a_run: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(monkeypatch, *arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("dqn: ")
    assert output.err.count("\n") == 1
    assert message in output.err


def test_command_names_a_home_that_it_cannot_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("not a directory")
    monkeypatch.setenv("DQN_HOME", str(tmp_path / "file" / "home"))
    assert run(monkeypatch, "runs") == 1
    error = capsys.readouterr().err
    assert str(tmp_path / "file" / "home") in error
    assert error.count("\n") == 1


def test_command_names_an_unreachable_mlflow_server(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    assert run(monkeypatch, "runs") == 1
    error = capsys.readouterr().err
    assert address in error
    assert error.count("\n") == 1


def test_train_reports_parameters_that_the_flow_refuses(
    prefect_server: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prefect checks the length of a name; its error has the reason after the first line."""
    assert run(monkeypatch, "train", "--states", "100", "--name", "n" * 201) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].endswith("to let it end with the training: --set learning_rate=0.0005:1e-05:100")
    assert [line for line in lines if line.startswith("dqn: ")] == [
        "dqn: name: String should have at most 200 characters"
    ]


def test_invalid_parameters_gives_the_reasons_in_one_line() -> None:
    error = ParameterTypeError("Flow run received invalid parameters:\n - a: Value error, 1\n - b: 2")
    assert invalid_parameters(error) == "a: 1; b: 2"


@pytest.mark.parametrize(
    ("command", "defaults"),
    [
        ("train", ["fast", "that of the preset", "4400000", "0", "1"]),
        ("evaluate", ["latest", "the run's evaluation_episodes", "the run's evaluation_epsilon", "0"]),
        ("inspect", ["the newest stored", "the highest Q-value", "0"]),
        ("ui", ["DQN_MLFLOW_PORT, or 5000"]),
    ],
)
def test_help_shows_the_defaults(
    command: str, defaults: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert run(monkeypatch, command, "--help") == 0
    assert re.findall(r"\[default: \(?(.*?)\)?\]", capsys.readouterr().out) == defaults


def test_version_option_prints_the_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"dqn {dqn.__version__}\n"


def test_help_takes_little_more_than_the_import_of_typer() -> None:
    """Half a second is about 1.6 times the import. Other processes slow down both."""
    pairs = [(processor_seconds(PRINT_HELP), processor_seconds("import sys, typer.rich_utils")) for _ in range(3)]
    assert min(own for own, _ in pairs) < 1.6 * min(typer for _, typer in pairs)


def processor_seconds(code: str) -> float:
    code += "; import resource; print(sum(resource.getrusage(resource.RUSAGE_SELF)[:2]), file=sys.stderr)"
    return float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stderr)


def test_help_imports_nothing_heavy() -> None:
    heavy = {"torch", "mlflow", "prefect", "numpy", "zarr", "gymnasium", "pydantic", "jinja2"}
    code = PRINT_HELP + f"; heavy = {heavy} & set(sys.modules); sys.exit(f'imported {{heavy}}' if heavy else 0)"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_runs_lists_the_runs(a_run: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "runs", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert a_run in [row["id"] for row in rows]
    assert run(monkeypatch, "runs") == 0
    assert a_run[:8] in capsys.readouterr().out


def test_evaluate_prints_the_same_scores_twice(
    a_run: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = []
    for _ in range(2):
        assert run(monkeypatch, "evaluate", a_run, "--episodes", "2", "--epsilon", "1", "--json") == 0
        results.append(json.loads(capsys.readouterr().out))
        assert results[-1].pop("states_per_second") > 0
    assert results[0] == results[1]
    assert len(results[0]["scores"]) == 2
    assert run(monkeypatch, "evaluate", a_run, "--episodes", "2", "--epsilon", "1") == 0
    assert "2 episodes of " in capsys.readouterr().out


def test_interrupted_training_prints_how_to_resume(
    home: Path, prefect_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """While it plays, a second trainer of the run exits with status 1. SIGTERM leaves no Prefect server."""
    monkeypatch.setenv("PREFECT_HOME", str(prefect_home))
    training = start_training("--name", "held", "--set", "lanes=2", "--set", "replay_states=200000")
    while not list(home.glob("staging/*/experience-*")):
        assert training.poll() is None, training.communicate()[1]
        time.sleep(0.05)
    servers = servers_below(training)
    run_id = open_tracking().find_run("held").info.run_id
    assert run(monkeypatch, "train", "--resume", "held") == 1
    refused = capsys.readouterr().err
    assert f"process {training.pid} on " in refused and "Traceback" not in refused
    os.killpg(training.pid, signal.SIGTERM)  # to the whole process group, as systemd and `timeout` do
    _, error = training.communicate(timeout=60)
    assert training.returncode == 128 + signal.SIGTERM
    assert error.splitlines()[-1] == f"stopped; resume with: dqn train --resume {run_id}"
    assert "Traceback" not in error
    assert open_tracking().get_run(run_id).info.status == "KILLED"
    assert not open_run(run_id).is_held()
    assert still_alive(servers) == []


def test_ui_serves_on_loopback_until_sigterm(home: Path, a_run: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with subprocess.Popen([*DQN, "ui", "--port", str(port)], stdout=subprocess.PIPE, text=True) as ui:
        assert ui.stdout is not None
        line = ui.stdout.readline()
        page = rf"http://127\.0\.0\.1:{port}/#/experiments/\d+/runs\?workflowType=machine_learning"
        assert re.search(page, line), "the runs, not MLflow's view for language models"
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as page:
            assert b"MLflow" in page.read()
        taken = subprocess.run([*DQN, "ui", "--port", str(port)], capture_output=True, text=True, check=False)
        assert taken.returncode == 2
        assert f"port {port} cannot be used on 127.0.0.1" in taken.stderr
        ui.send_signal(signal.SIGTERM)  # not SIGINT, which a background process of a shell ignores
        assert ui.wait(timeout=30) == 0
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port), timeout=5)


@pytest.fixture(scope="module")
def a_run(shared_home: Path) -> str:
    from dqn.envs.games import action_names
    from flows.train import requested_config

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DQN_HOME", str(shared_home))
        config = requested_config("fast", {"lanes": 2, "replay_states": 8})
        return create_run(config, action_names(config.game), "for-the-commands", {}).run_id


@pytest.fixture(autouse=True)
def _in_home(home: Path) -> None:
    """Every command uses the home of the tests."""


def start_training(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*DQN, "train", *arguments],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=dict(os.environ),
        start_new_session=True,  # a process group to which a signal can be sent
    )


def servers_below(trainer: subprocess.Popen[str]) -> list[psutil.Process]:
    """The Prefect servers that a running trainer has started."""
    below = psutil.Process(trainer.pid).children(recursive=True)
    servers = [process for process in below if "uvicorn" in process.cmdline()]
    assert servers, f"no server below the trainer, only {below}"
    return servers


def still_alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """The processes that do not exit within a minute. A zombie counts as exited."""
    deadline = time.monotonic() + 60
    while left := [process for process in processes if is_alive(process)]:
        if time.monotonic() > deadline:
            return left
        time.sleep(0.1)
    return []


def is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
