from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from storage.environment import NO_TELEMETRY, serve_environment, set_defaults

HEAVY = {"torch", "mlflow", "prefect", "numpy", "zarr", "gymnasium", "pydantic"}


@pytest.mark.parametrize("package", ["storage", "tasks", "flows"])
def test_importing_a_package_sets_the_defaults(package: str) -> None:
    """The package imports nothing heavy, so Prefect and MLflow are imported later and read the defaults."""
    environment = {name: value for name, value in os.environ.items() if name not in NO_TELEMETRY}
    code = f"import {package}, os, sys; print({HEAVY} & {{*sys.modules}}, {NO_TELEMETRY}.items() <= os.environ.items())"
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    assert done.stdout == "set() True\n"


def test_set_defaults_keeps_the_values_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "9")
    monkeypatch.setenv("DO_NOT_TRACK", "0")
    set_defaults()
    assert (os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"], os.environ["DO_NOT_TRACK"]) == ("9", "0")


def test_serve_environment_keeps_the_database_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "PREFECT_SERVER_DATABASE_CONNECTION_URL"
    monkeypatch.delenv(name, raising=False)
    assert serve_environment(Path("/home"), "http://here")[name] == "sqlite+aiosqlite:////home/prefect.db"
    monkeypatch.setenv(name, "postgresql://database")
    monkeypatch.setenv("PREFECT_SERVER_API_AUTH_STRING", "user:password")
    environment = serve_environment(Path("/home"), "http://here")
    assert environment[name] == "postgresql://database"
    assert environment["PREFECT_API_AUTH_STRING"] == "user:password"
    assert environment["DQN_HOME"] == environment["DQN_SERVED"] == "/home"
