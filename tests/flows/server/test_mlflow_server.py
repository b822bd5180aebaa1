"""The password of the MLflow server, and what must be set before other machines can reach the servers."""

from __future__ import annotations

from configparser import ConfigParser
from pathlib import Path

import pytest

from flows.server.mlflow_server import has_password, mlflow_command, prepare_password
from flows.server.processes import check_exposure
from storage.environment import MLFLOW_ALLOWED_HOSTS, MLFLOW_PASSWORD, MLFLOW_USER, PREFECT_SERVER_PASSWORD
from storage.settings import Settings

PASSWORD = "correct-horse-battery"
NEEDED = {
    PREFECT_SERVER_PASSWORD: "user:secret",
    MLFLOW_USER: "trainer",
    MLFLOW_PASSWORD: PASSWORD,
    MLFLOW_ALLOWED_HOSTS: "trainer.lan:5000",
}


@pytest.fixture(autouse=True)
def without_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NEEDED:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def login(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MLFLOW_USER, "trainer")
    monkeypatch.setenv(MLFLOW_PASSWORD, PASSWORD)


def test_server_has_no_password_unless_one_is_set(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    assert not has_password()
    assert "--app-name" not in mlflow_command(settings)
    assert prepare_password(settings) == {}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("login")
def test_password_is_that_of_the_environment_and_in_no_file(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    (tmp_path / "mlflow-5000.users.db").write_text("users with other passwords")
    first, second = prepare_password(settings), prepare_password(settings)
    assert first["MLFLOW_AUTH_ADMIN_USERNAME"] == "trainer" and first["MLFLOW_AUTH_ADMIN_PASSWORD"] == PASSWORD
    assert first["MLFLOW_FLASK_SERVER_SECRET_KEY"] != second["MLFLOW_FLASK_SERVER_SECRET_KEY"]
    command = mlflow_command(settings)
    assert command[command.index("--app-name") + 1] == "basic-auth" and PASSWORD not in " ".join(command)
    config = ConfigParser()
    config.read(first["MLFLOW_AUTH_CONFIG_PATH"])
    assert config["mlflow"]["default_permission"] == "NO_PERMISSIONS"
    users = Path(config["mlflow"]["database_uri"].removeprefix("sqlite:///"))
    assert users.read_bytes() == b"" and users.stat().st_mode & 0o777 == 0o600
    assert PASSWORD not in Path(first["MLFLOW_AUTH_CONFIG_PATH"]).read_text()


@pytest.mark.usefixtures("login")
def test_second_server_of_a_home_leaves_the_users_of_the_first(tmp_path: Path) -> None:
    prepare_password(Settings(home=tmp_path, mlflow_port=5001))
    (tmp_path / "mlflow-5001.users.db").write_text("users of the first")
    prepare_password(Settings(home=tmp_path, mlflow_port=5002))
    assert (tmp_path / "mlflow-5001.users.db").read_text() == "users of the first"


@pytest.mark.parametrize(
    ("user", "password", "message"),
    [
        ("trainer", "", f"{MLFLOW_USER} is set, but {MLFLOW_PASSWORD} is not"),
        ("", PASSWORD, f"{MLFLOW_PASSWORD} is set, but {MLFLOW_USER} is not"),
        ("trainer", "short", "at least 12 characters"),
    ],
)
def test_incomplete_login_is_refused(user: str, password: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MLFLOW_USER, user)
    monkeypatch.setenv(MLFLOW_PASSWORD, password)
    with pytest.raises(ValueError, match=message) as raised:
        has_password()
    assert "short" not in str(raised.value).replace("too short", "")


@pytest.mark.parametrize("missing", NEEDED)
def test_servers_beyond_loopback_need_every_password(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in NEEDED.items():
        monkeypatch.setenv(name, value)
    check_exposure(Settings(home=tmp_path, host="192.0.2.1"))
    monkeypatch.delenv(missing)
    with pytest.raises(ValueError, match=rf"which other machines can reach; set {missing} \("):
        check_exposure(Settings(home=tmp_path, host="192.0.2.1"))
    check_exposure(Settings(home=tmp_path))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "*"])
def test_servers_do_not_listen_on_all_addresses(host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in NEEDED.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="it must be one address of this machine, not all of them"):
        check_exposure(Settings(home=tmp_path, host=host))
