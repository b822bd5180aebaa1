"""Provenance of a run: versions, machine, code revision."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import dqn


def made_with() -> dict[str, str]:
    """Tags for a run's versions, machine and code revision."""
    machine = f"{platform.node()} {platform.machine()} {_processor()} {os.cpu_count()} cores"
    revision = _revision()
    return {
        **versions(),
        "version.python": platform.python_version(),
        "machine": machine,
        **({"mlflow.source.git.commit": revision} if revision else {}),
    }


def versions() -> dict[str, str]:
    """The versions of this project, and of the packages on which its results may depend."""
    packages = ("torch", "numpy", "gymnasium", "ale-py", "zarr", "mlflow", "prefect")
    found = {f"version.{name}": metadata.version(name).partition("+")[0] for name in packages}
    return {**found, "version.dqn": dqn.__version__}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def _revision() -> str:
    here = Path(__file__).resolve().parent
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=here,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return ""
    return found.stdout.strip()
