from __future__ import annotations

import os
from pathlib import Path

import pytest

import storage.settings
from storage.settings import Settings, without_password


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DQN_HOME", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("DQN_REPLAY", raising=False)


def test_home_is_created_at_first_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DQN_HOME", str(tmp_path / "a" / "new home"))
    settings = Settings.from_environment()
    assert settings.home == tmp_path / "a" / "new home"
    assert settings.home.is_dir()
    assert list(settings.home.iterdir()) == []
    assert settings.tracking_uri == f"sqlite:///{tmp_path}/a/new home/mlflow.db"


def test_settings_of_the_same_environment_are_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DQN_HOME", str(tmp_path))
    assert Settings.from_environment() == Settings.from_environment()
    assert hash(Settings.from_environment()) == hash(Settings.from_environment())


def test_relative_home_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DQN_HOME", "here")
    settings = Settings.from_environment()
    monkeypatch.chdir("/")
    assert settings.home == tmp_path / "here"
    assert settings.home.is_dir()


def test_tilde_is_the_users_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DQN_HOME", "~/games")
    assert Settings.from_environment().home == tmp_path / "games"


@pytest.mark.parametrize("unset", [None, ""])
def test_default_home_is_in_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unset: str | None) -> None:
    if unset is not None:
        monkeypatch.setenv("DQN_HOME", unset)
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.setattr(storage.settings, "_CHECKOUT", tmp_path)
    assert Settings.from_environment().home == tmp_path / "dqn-home"


def test_default_home_without_checkout_is_in_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage.settings, "_CHECKOUT", tmp_path / "site-packages")
    monkeypatch.chdir(tmp_path)
    assert Settings.from_environment().home == tmp_path / "dqn-home"


def test_checkout_is_the_root_of_this_project() -> None:
    assert (storage.settings._CHECKOUT / "storage" / "settings.py").is_file()
    assert (storage.settings._CHECKOUT / "pyproject.toml").is_file()


def test_tracking_uri_is_read_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DQN_HOME", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert Settings.from_environment().tracking_uri == "http://127.0.0.1:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    assert Settings.from_environment().tracking_uri == f"sqlite:///{tmp_path}/mlflow.db"


def test_replay_is_in_the_home_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DQN_HOME", str(tmp_path / "my home"))
    assert Settings.from_environment().replay == (tmp_path / "my home" / "replay").as_uri()
    for url, replay in {
        "s3://bucket": "s3://bucket",
        "s3://my.bucket-1/some/pre_fix 2/": "s3://my.bucket-1/some/pre_fix 2",
        f"file://{tmp_path}/new%20disk": (tmp_path / "new disk").as_uri(),
        f"{tmp_path}/plain": (tmp_path / "plain").as_uri(),
        "": (tmp_path / "my home" / "replay").as_uri(),
    }.items():
        monkeypatch.setenv("DQN_REPLAY", url)
        assert Settings.from_environment().replay == replay
    assert (tmp_path / "new disk").is_dir()


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("gs://bucket/x", "scheme gs is unknown"),
        ("http://me:secret@host/bucket", "scheme http is unknown"),
        ("replay", "not a directory"),
        ("file://replay", "not a directory"),
        ("file://host/replay", "not a directory"),
        ("file:///replay?x=1", "not a directory"),
        ("file://[replay", "not a URL"),
        ("s3:bucket", "no bucket"),
        ("s3://", "no bucket"),
        ("s3:///prefix", "no bucket"),
        ("s3://My_Bucket/x", "bucket cannot exist"),
        ("s3://me:secret@bucket/x", "cannot exist"),
        ("s3://bucket/a//b", "prefix 'a//b' cannot be used"),
        ("s3://bucket/../b", "cannot be used"),
        ("s3://bucket/a?b", "cannot be used"),
    ],
)
def test_invalid_replay_url_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, told: str) -> None:
    monkeypatch.setenv("DQN_HOME", str(tmp_path))
    monkeypatch.setenv("DQN_REPLAY", url)
    with pytest.raises(ValueError, match=r"^DQN_REPLAY is ") as raised:
        Settings.from_environment()
    said = str(raised.value)
    assert told in said and "s3://BUCKET/PREFIX" in said
    assert "\n" not in said and "secret" not in said


def test_replay_directory_that_cannot_be_created_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DQN_HOME", str(tmp_path))
    (tmp_path / "file").write_text("precious")
    monkeypatch.setenv("DQN_REPLAY", f"file://{tmp_path}/file/below")
    with pytest.raises(OSError, match=r"^DQN_REPLAY file://.*/file/below cannot be written"):
        Settings.from_environment()


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://me:secret@host:5000/", "http://host:5000/"),
        ("https://me:se@cret@host/mlflow", "https://host/mlflow"),
        ("postgresql://me:secret@host/runs", "postgresql://host/runs"),
        ("postgresql://host/runs?user=me&password=secret&sslmode=require", None),
        ("sqlite:////home/me@host/mlflow.db", "sqlite:////home/me@host/mlflow.db"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
    ],
)
def test_password_is_not_shown(tmp_path: Path, uri: str, shown: str | None) -> None:
    said = without_password(uri)
    assert said == (shown or "postgresql://host/runs?user=me&password=***&sslmode=require")
    assert "secret" not in Settings(home=tmp_path, tracking_uri=uri).mlflow_address


def test_directories_are_distinct_and_below_the_home(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, tracking_uri="sqlite://")
    directories = [settings.artifacts("Breakout"), settings.artifacts("Pong")]
    directories += [of(run) for of in (settings.cache, settings.staging, settings.lock) for run in ("a1", "b2")]
    assert all(directory.is_relative_to(tmp_path) for directory in directories)
    assert len(set(directories)) == 8
    for directory in directories:
        assert not any(other.is_relative_to(directory) for other in directories if other != directory)


@pytest.mark.parametrize("where", ["file", "file/below", "file/below/it"])
def test_home_that_cannot_be_created_is_refused_with_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    (tmp_path / "file").write_text("precious")
    monkeypatch.setenv("DQN_HOME", str(tmp_path / where))
    with pytest.raises(OSError, match=r"DQN_HOME .*/file.*cannot be written") as raised:
        Settings.from_environment()
    assert str(tmp_path / where) in str(raised.value)
    assert "\n" not in str(raised.value)
    assert (tmp_path / "file").read_text() == "precious"


def test_home_that_cannot_be_written_is_refused_with_its_path(monkeypatch: pytest.MonkeyPatch) -> None:
    unwritable = Path("/proc") / str(os.getpid()) / "task"  # not even the superuser can write there
    monkeypatch.setenv("DQN_HOME", str(unwritable))
    with pytest.raises(OSError, match=rf"DQN_HOME {unwritable} cannot be written"):
        Settings.from_environment()


def test_home_with_a_question_mark_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DQN_HOME", str(tmp_path / "what?" / "home"))
    with pytest.raises(OSError, match="question mark"):
        Settings.from_environment()


def test_home_of_an_unknown_user_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DQN_HOME", "~nobody-of-that-name/dqn")
    with pytest.raises(OSError, match=r"DQN_HOME ~nobody-of-that-name/dqn"):
        Settings.from_environment()


@pytest.mark.parametrize(
    ("variable", "value", "allowed"),
    [
        ("DQN_PREFECT_PORT", "x", "a number from 1 to 65535"),
        ("DQN_PREFECT_PORT", "0", "a number from 1 to 65535"),
        ("DQN_MLFLOW_PORT", "65536", "a number from 1 to 65535"),
        ("DQN_TRAININGS", "-1", "a number from 1 to 1000000000"),
        ("DQN_FLOW_RUN_CYCLES", "1.5", "a number from 1 to 1000000000"),
        ("DQN_CLUSTER", "host:8786", "a Dask scheduler, such as tcp://host:8786"),
        ("DQN_CLUSTER", "tcp://host:8786\n", "a Dask scheduler, such as tcp://host:8786"),
    ],
)
def test_invalid_setting_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, allowed: str
) -> None:
    monkeypatch.setenv("DQN_HOME", str(tmp_path))
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=variable) as raised:
        Settings.from_environment()
    assert str(raised.value) == f"{variable} is {value!r}; it must be {allowed}"


def test_empty_variables_count_as_unset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DQN_HOME", str(tmp_path))
    unset = Settings.from_environment()
    for field in Settings.model_fields.values():
        if field.validation_alias != "DQN_HOME":
            monkeypatch.setenv(str(field.validation_alias), "")
    assert Settings.from_environment() == unset


def test_every_setting_has_a_variable_and_description() -> None:
    fields = Settings.model_fields.values()
    assert all(field.validation_alias and field.description for field in fields)


def test_given_settings_are_not_read_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DQN_HOME", "/elsewhere")
    monkeypatch.setenv("DQN_MLFLOW_PORT", "1")
    settings = Settings(home=tmp_path, mlflow_port=2)
    assert (settings.home, settings.mlflow_port) == (tmp_path, 2)
    assert settings.tracking_uri == f"sqlite:///{tmp_path}/mlflow.db"
