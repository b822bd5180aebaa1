"""Training from the command line: with a Prefect server of its own, and with its progress on the terminal."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

import httpx
import typer

from flows.parameters import Target, check_resume, learning_rate_note, requested_config, requested_settings
from flows.server.embedded import start_embedded_prefect_server
from flows.server.processes import prefect_unreachable
from storage.environment import PREFECT_API_URL
from storage.errors import StorageError, one_line
from storage.settings import Settings

if TYPE_CHECKING:
    from flows.cli.display import Display


def run_training(parameters: Mapping[str, Any], received_signals: list[int]) -> str:
    """Run the flow `train` with `parameters` until its target is reached.

    Args:
        parameters: value of every parameter of the flow; None for those that were not given.
        received_signals: numbers of the signals that have interrupted this process, other than SIGINT.

    Returns:
        The id of the MLflow run.

    Raises:
        ValueError: a parameter is invalid.
        StorageError: a server or the disk failed; the message has the command that resumes the run.
        typer.Exit: the process was interrupted; the command that resumes the run is on stderr.
    """
    parameters = {**parameters, "resume": _check(parameters)}
    display: Display | None = None
    try:
        start_embedded_prefect_server(meanwhile=_prepare)
        from flows.cli.display import Display

        display = Display()
        return _train(parameters, display)
    except KeyboardInterrupt:
        if display and display.run_id:
            print(f"stopped; resume with: dqn train --resume {display.run_id}", file=sys.stderr)
        raise typer.Exit(128 + (received_signals or [signal.SIGINT])[0]) from None
    except httpx.TransportError:
        raise StorageError(prefect_unreachable(os.environ.get(PREFECT_API_URL)) + _how_to_resume(display)) from None
    except OSError as error:
        raise StorageError(one_line(error) + _how_to_resume(display)) from None


def _check(parameters: Mapping[str, Any]) -> str | None:
    """Check the parameters before a server is started, and print what may be unexpected; the flow checks them again.

    Returns:
        The id of the run to resume, if any.
    """
    target = Target.of(parameters["states"], parameters["cycles"])
    preset, resume = parameters["preset"], parameters["resume"]
    settings = requested_settings(*(parameters[name] for name in ("config", "game", "seed", "overrides")))
    if resume:
        from storage.runs import open_tracking

        check_resume(preset, settings, parameters["name"])
        return str(open_tracking().find_run(resume).info.run_id)
    if cluster := Settings.from_environment().cluster:
        from flows.runners import check_cluster

        # Unresolved: whether its device exists is checked on the worker that optimizes.
        config = requested_config(preset, settings, resolved=lambda config: config)
        check_cluster(cluster)
    else:
        config = requested_config(preset, settings)
    if note := learning_rate_note(config, target):
        print(note, file=sys.stderr)
    return None


def _prepare() -> None:
    """Import the slow modules and open the store, which takes seconds when its database is new."""
    from storage.runs import open_tracking

    for module in ("flows.cli.display", "flows.train"):
        import_module(module)
    open_tracking()


def _train(parameters: Mapping[str, Any], display: Display) -> str:
    from prefect.exceptions import ParameterTypeError

    from flows.train import train_to_the_end

    try:
        with display:
            return train_to_the_end(**parameters)
    except ParameterTypeError as error:
        raise ValueError(invalid_parameters(error)) from None


def invalid_parameters(error: Exception) -> str:
    """The reasons in Prefect's `ParameterTypeError`, in one line without its heading."""
    lines = [line.strip().removeprefix("- ").replace("Value error, ", "") for line in str(error).splitlines()]
    return "; ".join(lines[1:] or lines)


def _how_to_resume(display: Display | None) -> str:
    if display is None or not display.run_id:
        return ""
    return f"; every finished cycle is stored; resume with: dqn train --resume {display.run_id}"
