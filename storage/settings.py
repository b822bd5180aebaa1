"""Where everything lives."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from storage.files import make_directories

_CHECKOUT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Settings:
    """The places of one installation, all under one home unless told otherwise."""

    home: Path
    tracking_uri: str

    @classmethod
    def from_environment(cls) -> Settings:
        """`DQN_HOME`, by default `dqn-home` in the checkout, and `MLFLOW_TRACKING_URI`.

        The home is created when first used.

        Raises:
            OSError: the home cannot be created or written.
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
        return cls(home, uri)

    def artifacts(self, experiment: str) -> Path:
        """Where the artifacts of a new MLflow experiment go."""
        return self.home / "artifacts" / experiment

    def replay(self, run_id: str) -> Path:
        """Experience and targets of a run."""
        return self.home / "replay" / run_id

    def staging(self, run_id: str) -> Path:
        """Units of a run that are not committed yet, or not any more."""
        return self.home / "staging" / run_id

    def lock(self, run_id: str) -> Path:
        """The file that the one writer of a run holds."""
        return self.home / "locks" / f"{run_id}.lock"
