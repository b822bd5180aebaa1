"""Settings of one installation: where its files are, where its servers listen, where its tasks run."""

from __future__ import annotations

import ipaddress
import re
import tempfile
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from storage.durable import make_directories
from storage.urls import check_url, directory_of, is_local

_CHECKOUT = Path(__file__).resolve().parent.parent
_MANY = 10**9  # an upper limit for counts


def _default_home() -> Path:
    return (_CHECKOUT if (_CHECKOUT / "pyproject.toml").exists() else Path.cwd()) / "dqn-home"


def _default_tracking_uri(fields: dict[str, Any]) -> str:
    return f"sqlite:///{fields['home'] / 'mlflow.db'}"


def _default_replay(fields: dict[str, Any]) -> str:
    return str((fields["home"] / "replay").as_uri())


class Settings(BaseSettings):
    """Settings of one installation. Each field is read from the environment variable that is its alias.

    An empty variable counts as unset. Use `from_environment`, which reports errors in one line and creates the home.
    """

    model_config = SettingsConfigDict(frozen=True, case_sensitive=True, env_ignore_empty=True, validate_by_name=True)

    home: Path = Field(
        default_factory=_default_home,
        validation_alias="DQN_HOME",
        description="Directory of everything that this installation stores locally. Default: dqn-home in the checkout.",
    )
    tracking_uri: str = Field(
        default_factory=_default_tracking_uri,
        validation_alias="MLFLOW_TRACKING_URI",
        description="MLflow's tracking store. Default: a SQLite database in the home.",
    )
    replay: str = Field(
        default_factory=_default_replay,
        validation_alias="DQN_REPLAY",
        description="file:// or s3:// URL of the experience and the targets of all runs. Default: replay in the home.",
    )
    host: str = Field(
        default="127.0.0.1",
        validation_alias="DQN_HOST",
        description="Address on which the servers listen.",
    )
    prefect_port: int = Field(
        default=4200, ge=1, le=65535, validation_alias="DQN_PREFECT_PORT", description="Port of the Prefect server."
    )
    mlflow_port: int = Field(
        default=5000, ge=1, le=65535, validation_alias="DQN_MLFLOW_PORT", description="Port of the MLflow server."
    )
    trainings: int = Field(
        default=2,
        ge=1,
        le=_MANY,
        validation_alias="DQN_TRAININGS",
        description="Number of training flow runs that the worker runs at the same time.",
    )
    flow_run_cycles: int = Field(
        default=1_500,
        ge=1,
        le=_MANY,
        validation_alias="DQN_FLOW_RUN_CYCLES",
        description="Number of cycles after which a flow run hands its training over to a new flow run.",
    )
    cluster: str = Field(
        default="",
        pattern=r"^((tcp|tls|ws|wss)://[^/\s]+:\d{1,5})?$",
        validation_alias="DQN_CLUSTER",
        description="Address of the Dask scheduler whose workers run the tasks. Default: tasks run in this process.",
    )

    @field_validator("home")
    @classmethod
    def _absolute(cls, home: Path) -> Path:
        try:
            path = home.expanduser().absolute()
        except RuntimeError as error:
            raise OSError(f"DQN_HOME {home} cannot be used ({error}); name another directory") from None
        if "?" in str(path):  # the rest would be the query of the database's URI
            raise OSError(f"DQN_HOME {home} has a question mark in it; name another directory")
        return path

    @field_validator("replay")
    @classmethod
    def _checked_url(cls, url: str) -> str:
        check_url(url)
        return directory_of(url).as_uri() if is_local(url) else url.rstrip("/")

    @classmethod
    def from_environment(cls) -> Settings:
        """The settings in the environment. Creates the home, and the directory in `DQN_REPLAY`.

        Raises:
            OSError: one of these directories cannot be created or written.
            ValueError: the value of a variable is not allowed.
        """
        try:
            settings = cls()
        except ValidationError as error:
            raise ValueError(_one_line(error)) from None
        try:
            make_directories(settings.home)
            with tempfile.TemporaryFile(dir=settings.home):
                pass
        except OSError as error:
            raise OSError(
                f"DQN_HOME {settings.home} cannot be written ({error.strerror}); name another directory"
            ) from None
        if "replay" in settings.model_fields_set and is_local(settings.replay):
            try:
                make_directories(directory_of(settings.replay))
            except OSError as error:
                raise OSError(
                    f"DQN_REPLAY {settings.replay} cannot be written ({error.strerror}); name another directory"
                ) from None
        return settings

    @property
    def prefect_address(self) -> str:
        """Where `dqn serve` has the Prefect UI; its API is at /api below."""
        return f"http://{self.host}:{self.prefect_port}"

    @property
    def mlflow_address(self) -> str:
        """Where people find the MLflow UI of the store."""
        own_server = self.tracking_uri.startswith(("http://", "https://"))
        return (
            without_password(self.tracking_uri).rstrip("/") if own_server else f"http://{self.host}:{self.mlflow_port}"
        )

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach what is served."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def artifacts(self, experiment: str) -> Path:
        """Where the artifacts of a new MLflow experiment go."""
        return self.home / "artifacts" / experiment

    def staging(self, run_id: str) -> Path:
        """Units of a run that are not committed yet, or not any more."""
        return self.home / "staging" / run_id

    def cache(self, run_id: str) -> Path:
        """Copies of a run's units that stand in an object store."""
        return self.home / "cache" / run_id

    def unpublished(self, run_id: str) -> Path:
        """Metrics of a run that MLflow could not take yet."""
        return self.home / "unpublished" / run_id

    def sweep(self, run_id: str) -> Path:
        """What a sweep stores, by the id of its MLflow run."""
        return self.home / "sweeps" / run_id

    @property
    def inspections(self) -> Path:
        """Reports on agents whose run is not stored here."""
        return self.home / "inspections"

    def lock(self, run_id: str) -> Path:
        """The file that the one writer of a run in this home holds."""
        return self.home / "locks" / f"{run_id}.lock"


def without_password(uri: str) -> str:
    """`uri` for people to read: without the user and the password that may be in it."""
    return re.sub(r"([?&;]password=)[^&;]*", r"\1***", re.sub(r"://[^/]*@", "://", uri))


def _one_line(error: ValidationError) -> str:
    """The first problem of `error`: the variable, its value, and what is allowed."""
    problem = error.errors()[0]
    variable, value = problem["loc"][0], without_password(str(problem["input"]))
    if problem["type"] == "value_error":  # of `_checked_url`
        return f"{variable} is {value!r}, {problem['ctx']['error']}"
    schema = Settings.model_json_schema()["properties"][variable]
    if "maximum" in schema:
        allowed = f"a number from {schema['minimum']} to {schema['maximum']}"
    else:
        allowed = "a Dask scheduler, such as tcp://host:8786"
    return f"{variable} is {value!r}; it must be {allowed}"
