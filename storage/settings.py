"""Where everything lives."""

from __future__ import annotations

import ipaddress
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from storage.durable import make_directories
from storage.urls import check_url, directory_of, is_local

_CHECKOUT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Settings:
    """The places of one installation, all under one home unless told otherwise, and where it serves."""

    home: Path
    tracking_uri: str
    replay_url: str = ""  # of experience and targets; in the home unless set
    host: str = "127.0.0.1"
    prefect_port: int = 4200
    mlflow_port: int = 5000
    trainings: int = 2  # flow runs of trainings that a worker has at once
    flow_run_cycles: int = 1_000  # after so many, a flow run hands its training over to a fresh one
    cluster: str = ""  # address of the Dask scheduler whose workers do the tasks; this process, unless set

    @classmethod
    def from_environment(cls) -> Settings:
        """`DQN_HOME`, by default `dqn-home` in the checkout, `MLFLOW_TRACKING_URI`, and other `DQN_` variables.

        The home is created when first used.

        Raises:
            OSError: the home, or a directory in `DQN_REPLAY`, cannot be created or written.
            ValueError: a variable is no such number, or no such URL.
        """
        default = (_CHECKOUT if (_CHECKOUT / "pyproject.toml").exists() else Path.cwd()) / "dqn-home"
        wanted = os.environ.get("DQN_HOME") or default
        try:
            home = Path(wanted).expanduser().absolute()
        except RuntimeError as error:
            raise OSError(f"DQN_HOME {wanted} cannot be used ({error}); name another directory") from None
        if "?" in str(home):  # the rest would be a query to the database's address
            raise OSError(f"DQN_HOME {wanted} has a question mark in it; name another directory")
        try:
            make_directories(home)
            with tempfile.TemporaryFile(dir=home):
                pass
        except OSError as error:
            raise OSError(f"DQN_HOME {home} cannot be written ({error.strerror}); name another directory") from None
        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home / 'mlflow.db'}"
        return cls(
            home,
            uri,
            _replay_url(),
            os.environ.get("DQN_HOST") or cls.host,
            _number("DQN_PREFECT_PORT", cls.prefect_port, most=65535),
            _number("DQN_MLFLOW_PORT", cls.mlflow_port, most=65535),
            _number("DQN_TRAININGS", cls.trainings),
            _number("DQN_FLOW_RUN_CYCLES", cls.flow_run_cycles),
            _cluster(),
        )

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

    @property
    def replay(self) -> str:
        """URL of the experience and the targets of all runs."""
        return self.replay_url or (self.home / "replay").as_uri()

    def staging(self, run_id: str) -> Path:
        """Units of a run that are not committed yet, or not any more."""
        return self.home / "staging" / run_id

    def cache(self, run_id: str) -> Path:
        """Copies of a run's units that stand in an object store."""
        return self.home / "cache" / run_id

    def unpublished(self, run_id: str) -> Path:
        """Metrics of a run that MLflow could not take yet."""
        return self.home / "unpublished" / run_id

    def lock(self, run_id: str) -> Path:
        """The file that the one writer of a run holds."""
        return self.home / "locks" / f"{run_id}.lock"


def without_password(uri: str) -> str:
    """`uri` for people to read: without the user and the password that may be in it."""
    return re.sub(r"([?&;]password=)[^&;]*", r"\1***", re.sub(r"://[^/]*@", "://", uri))


def _cluster() -> str:
    address = os.environ.get("DQN_CLUSTER") or ""
    if address and not re.fullmatch(r"(tcp|tls|ws|wss)://[^/\s]+:\d{1,5}", address):
        raise ValueError(f"DQN_CLUSTER is {address!r}; it must be a Dask scheduler, such as tcp://host:8786")
    return address


def _replay_url() -> str:
    url = os.environ.get("DQN_REPLAY") or ""
    if not url:
        return ""
    try:
        check_url(url)
        if is_local(url):
            make_directories(directory_of(url))
            return directory_of(url).as_uri()
    except ValueError as error:
        raise ValueError(f"DQN_REPLAY is {without_password(url)!r}, {error}") from None
    except OSError as error:
        raise OSError(f"DQN_REPLAY {url} cannot be written ({error.strerror}); name another place") from None
    return url.rstrip("/")


def _number(name: str, default: int, most: int = 10**9) -> int:
    text = os.environ.get(name) or str(default)
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text) <= most:
        raise ValueError(f"{name} is {text!r}; it must be a number from 1 to {most}")
    return int(text)
