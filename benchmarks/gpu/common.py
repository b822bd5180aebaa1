"""Results, options and commands that the three scripts share."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import HERE

DQN = [sys.executable, "-m", "flows.cli"]
STOP_SECONDS = 60  # an interrupted command is killed after this time
_USERS_STORES = ("DQN_REPLAY", "DQN_CLUSTER", "MLFLOW_TRACKING_URI", "PREFECT_API_URL")


class Results:
    """Results by part and name, printed at once and written to a JSON file. Tracebacks go to a file next to it.

    Attributes:
        failed: number of parts that failed.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.failed = 0
        self._values: dict[str, dict[str, Any]] = {}
        self._tracebacks = path.with_name(f"{path.stem}-errors.txt")
        self._tracebacks.unlink(missing_ok=True)

    def add(self, part: str, name: str, value: Any) -> None:
        """Record and print one result."""
        self._values.setdefault(part, {})[name] = value
        self.path.write_text(json.dumps(self._values, indent=1) + "\n")
        large = isinstance(value, float) and abs(value) >= 100
        print(f"{part:9} {name}: {f'{value:,.0f}' if large else value}", flush=True)

    @contextmanager
    def attempt(self, part: str, name: str = "") -> Iterator[None]:
        """Run the block. If it fails, record the error in one line, and go on after the block."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - the other parts must still run
            self.failed += 1
            lines = str(error).strip().splitlines() or [""]
            self.add(part, f"{name} FAILED".strip(), f"{type(error).__name__}: {lines[0][:300]}")
            with self._tracebacks.open("a") as file:
                file.write(f"{part} {name}\n{traceback.format_exc()}\n")

    def finish(self) -> int:
        """Print how many parts failed, and return the exit status of the script."""
        print(f"{self.failed} failed; results are in {self.path}")
        return 1 if self.failed else 0


def parser(module: str, description: str | None) -> argparse.ArgumentParser:
    """A parser for the options of `module`, with the option that all scripts have."""
    made = argparse.ArgumentParser(
        prog=f"python -m benchmarks.gpu.{module}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = HERE.parent / "build" / "gpu"
    made.add_argument("--out", type=Path, default=default, metavar="DIR", help="directory of the results: build/gpu")
    return made


def check_device(options: argparse.ArgumentParser, device: str) -> None:
    """Exit with an error of one line if torch does not find the device."""
    if device == "cuda" and not torch.cuda.is_available():
        options.error("torch finds no CUDA device; --device cpu tests the script without one")


def parse_parts(
    options: argparse.ArgumentParser, parts: Collection[str], arguments: Sequence[str] | None
) -> argparse.Namespace:
    """Parse the options of a script that has a device and parts; an unknown part or a missing device is an error."""
    names = ", ".join(parts)
    help_text = "cpu runs a small version of every part, which tests the script itself"
    options.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help=help_text)
    options.add_argument("parts", nargs="*", metavar="PART", help=f"all by default; any of: {names}")
    given = options.parse_args(arguments)
    if unknown := set(given.parts) - set(parts):
        options.error(f"unknown part {min(unknown)!r}; choose from: {names}")
    check_device(options, given.device)
    return given


def synchronize() -> None:
    """Wait until the GPU, if there is one, has finished."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def use_home(home: Path) -> None:
    """Make `home` the home of this process, with all of its stores below it."""
    for name in _USERS_STORES:
        os.environ.pop(name, None)
    os.environ["DQN_HOME"] = str(home)


def run_dqn(
    home: Path, arguments: Sequence[str], log: Path, limit: float, environment: Mapping[str, str] | None = None
) -> None:
    """Run the command `dqn` in `home`, and append its output to `log`.

    Args:
        home: directory of the runs and of Prefect's database.
        arguments: of the command.
        log: a text file.
        limit: seconds after which the command is interrupted, as with Ctrl-C.
        environment: additional environment variables.

    Raises:
        RuntimeError: the command failed or was interrupted. The message contains the last line of its output.
    """
    variables = {name: value for name, value in os.environ.items() if name not in _USERS_STORES}
    variables |= {"DQN_HOME": str(home), "PREFECT_HOME": str(home / "prefect"), **(environment or {})}
    with log.open("a") as output:
        process = subprocess.Popen([*DQN, *arguments], env=variables, stdout=output, stderr=subprocess.STDOUT)
        try:
            status = process.wait(limit)
            ending = f"failed with status {status}"
        except subprocess.TimeoutExpired:
            _stop(process)
            status, ending = 1, f"was interrupted after {limit:.0f} s"
        except BaseException:  # Ctrl-C
            _stop(process)
            raise
    if status:
        last = (log.read_text().strip().splitlines() or ["no output"])[-1]
        raise RuntimeError(f"dqn {arguments[0]} {ending}: {last.strip()}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Interrupt a process, and kill it if it does not end."""
    process.send_signal(signal.SIGINT)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def set_options(fields: Sequence[str]) -> list[str]:
    """The options of `dqn train` that set `fields`, each as FIELD=VALUE."""
    return [option for field in fields for option in ("--set", field)]
