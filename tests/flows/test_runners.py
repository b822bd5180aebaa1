"""Errors about a Dask cluster that cannot be used; `make cluster-test` uses a cluster."""

from __future__ import annotations

import importlib.util
import socket
import sys

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.cli import app
from flows.runners import LocalRunner, check_cluster, open_runner
from storage.settings import Settings

API = {PREFECT_API_URL: "http://127.0.0.1:4200/api"}

pytestmark = pytest.mark.usefixtures("home")


@pytest.mark.parametrize("address", ["here", "tcp://host", "tcp://:8786", "http://host:8786", "tcp://host:x"])
def test_settings_refuse_an_invalid_cluster_address(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DQN_CLUSTER", address)
    with pytest.raises(ValueError, match=f"DQN_CLUSTER is '{address}'; it must be a Dask scheduler, such as tcp://"):
        Settings.from_environment()


def test_local_runner_does_not_import_dask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DQN_CLUSTER", raising=False)
    imported = {name for name in sys.modules if name.partition(".")[0] in ("distributed", "dask", "prefect_dask")}
    with open_runner() as runner:
        assert isinstance(runner, LocalRunner)
    assert imported == {
        name for name in sys.modules if name.partition(".")[0] in ("distributed", "dask", "prefect_dask")
    }


def test_cluster_requires_a_prefect_server(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("DQN_CLUSTER", "tcp://127.0.0.1:8786")
    monkeypatch.setattr(sys, "argv", ["dqn", "train", "--shards", "2", "--set", "device=cuda"])
    with temporary_settings(restore_defaults={PREFECT_API_URL}), pytest.raises(SystemExit) as stopped:
        app._run()
    assert stopped.value.code == 2
    assert "DQN_CLUSTER is tcp://127.0.0.1:8786, but PREFECT_API_URL is not set" in capsys.readouterr().err


def test_cluster_requires_prefect_dask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with temporary_settings(API), pytest.raises(ValueError, match=r"prefect-dask is not installed.*\[cluster\]"):
        check_cluster("tcp://127.0.0.1:8786")


def test_cluster_reports_an_unreachable_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = f"tcp://127.0.0.1:{closed.getsockname()[1]}"
    monkeypatch.setenv("DQN_CLUSTER", address)
    with (
        temporary_settings(API),
        pytest.raises(ConnectionError, match=rf"the Dask scheduler {address} does not answer \(.*refused\)"),
        open_runner(),
    ):
        pass
