"""`dqn serve` with passwords: nobody reads or changes anything without them, and they are stored nowhere."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import httpx
import psutil
import pytest
from operated import FIELDS, Operated, wait_until

from storage.environment import MLFLOW_PASSWORD, MLFLOW_USER, PREFECT_CLIENT_PASSWORD, PREFECT_SERVER_PASSWORD

MLFLOW_SECRET, PREFECT_SECRET = "correct-horse-battery", "staple-of-the-server"
MLFLOW_LOGIN, PREFECT_LOGIN = ("trainer", MLFLOW_SECRET), ("admin", PREFECT_SECRET)

# These say nothing about runs.
PUBLIC = {"/health", "/static-files/x", *(f"/{api}/3.0/mlflow/server-info" for api in ("api", "ajax-api"))}

pytestmark = [pytest.mark.operate, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operated]:
    login = ":".join(PREFECT_LOGIN)
    variables = {PREFECT_SERVER_PASSWORD: login, PREFECT_CLIENT_PASSWORD: login}
    variables |= {MLFLOW_USER: MLFLOW_LOGIN[0], MLFLOW_PASSWORD: MLFLOW_SECRET}
    guarded = Operated(tmp_path_factory.mktemp("guarded"), **variables)
    yield guarded
    if guarded.process.poll() is None:
        guarded.stop()


def mlflow_routes() -> set[tuple[str, str]]:
    """Every method and path of the MLflow server, with `x` in place of parameters."""
    from mlflow.server import app
    from mlflow.server.auth import routes as login_routes
    from mlflow.server.fastapi_app import create_fastapi_app

    found = {(method, rule.rule) for rule in app.url_map.iter_rules() for method in rule.methods or ()}
    paths = [path for name, path in vars(login_routes).items() if name.isupper()]
    found |= {(method, path) for path in paths for method in ("GET", "POST", "PATCH", "DELETE")}
    found |= {
        (method, route.path)
        for route in create_fastapi_app().routes
        for method in getattr(route, "methods", None) or ()
    }
    return {
        (method, re.sub(r"[<{][^>}]*[>}]", "x", path)) for method, path in found if method not in ("OPTIONS", "HEAD")
    }


@pytest.mark.filterwarnings("ignore:starlette.middleware.wsgi is deprecated")
def test_mlflow_refuses_every_request_without_its_password(guarded: Operated) -> None:
    routes = mlflow_routes()
    assert len(routes) > 200
    known = {"/", "/graphql", "/api/2.0/mlflow/runs/delete", "/get-artifact", "/api/2.0/mlflow/users/create"}
    assert {path for _, path in routes} >= known
    answered = set()
    with httpx.Client(base_url=guarded.settings.mlflow_address, timeout=60) as client:
        for method, path in sorted(routes):
            for login in (None, ("trainer", "wrong-password-here"), ("admin", "password1234")):
                if client.request(method, path, auth=login).status_code != 401:
                    answered.add(path)
    assert answered == PUBLIC


def test_prefect_refuses_every_request_without_its_password(guarded: Operated) -> None:
    with httpx.Client(base_url=guarded.settings.prefect_address, timeout=60) as client:
        found = client.get("/openapi.json", auth=PREFECT_LOGIN).json()["paths"]
        assert len(found) > 100
        answered = set()
        for path, methods in found.items():
            for method in methods:
                address = "/api" + re.sub(r"{[^}]*}", "x", path)
                for login in (None, ("admin", "wrong")):
                    if client.request(method.upper(), address, auth=login).status_code != 401:
                        answered.add(path)
    assert answered <= {"/health", "/ready"}, answered


def test_training_by_a_worker_works_with_passwords(guarded: Operated) -> None:
    parameters = ["-p", "cycles=2", "-p", f"overrides={json.dumps(FIELDS)}"]
    guarded.prefect("deployment", "run", "dqn/train", *parameters, "--watch")
    body = {"max_results": 10}
    address = f"{guarded.settings.mlflow_address}/api/2.0/mlflow/experiments/search"
    found = httpx.post(address, json=body, auth=MLFLOW_LOGIN, timeout=60).json()["experiments"]
    assert "Breakout" in {experiment["name"] for experiment in found}


def test_passwords_are_in_no_file_and_no_command_line(guarded: Operated) -> None:
    secrets = [MLFLOW_SECRET.encode(), PREFECT_SECRET.encode()]
    files = [path for path in guarded.settings.home.rglob("*") if path.is_file()]
    assert len(files) > 20
    assert [path for path in files if any(secret in path.read_bytes() for secret in secrets)] == []
    commands = [" ".join(process.cmdline()).encode() for process in guarded.processes()]
    assert len(commands) >= 3
    assert [command for command in commands if any(secret in command for secret in secrets)] == []


def test_servers_listen_on_loopback_only(guarded: Operated) -> None:
    def listening() -> set[tuple[str, int]]:
        return {
            (connection.laddr.ip, connection.laddr.port)
            for process in guarded.processes()
            for connection in process.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        }

    ports = {guarded.settings.prefect_port, guarded.settings.mlflow_port}
    wait_until(lambda: ports <= {port for _, port in listening()}, "the servers' ports")
    assert {address for address, _ in listening()} == {"127.0.0.1"}
