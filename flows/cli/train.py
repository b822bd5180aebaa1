"""Start a training from the command line: with a Prefect server for it alone, and its progress on this terminal."""

from __future__ import annotations

import os
import signal
import sys
from importlib import import_module
from typing import Any

import httpx
import typer

from flows.parameters import Target, check_resume, requested_config, requested_settings
from flows.server.processes import prefect_is_away, start_embedded_prefect_server
from storage.errors import StorageError, one_line
from storage.settings import Settings


def start(wanted: dict[str, Any], stopped: list[int]) -> str:
    """Train as the parameters of the flow in `wanted` say, until the target is reached.

    Args:
        wanted: every parameter of the flow, None where it was left out.
        stopped: the signals that came to end this process, other than Ctrl-C.

    Returns:
        The id of the MLflow run.

    Raises:
        ValueError: a parameter is wrong; no server was started.
        StorageError: a server or the disk failed; it tells how to go on.
        typer.Exit: it was interrupted, and how to go on is on stderr.
    """
    wanted = {**wanted, "resume": _check(**wanted)}
    display = None
    try:
        start_embedded_prefect_server(meanwhile=_open_all)
        from flows.cli.display import Display
        from flows.train import train_to_the_end

        display = Display()
        with display:
            return train_to_the_end(**wanted)
    except KeyboardInterrupt:
        if display and display.run_id:
            print(f"stopped; go on with: dqn train --resume {display.run_id}", file=sys.stderr)
        raise typer.Exit(128 + (stopped or [signal.SIGINT])[0]) from None
    except httpx.TransportError:
        raise StorageError(prefect_is_away(os.environ.get("PREFECT_API_URL")) + _how_to_go_on(display)) from None
    except OSError as error:
        raise StorageError(one_line(error) + _how_to_go_on(display)) from None


def _check(
    preset: str | None,
    game: str | None,
    states: int | None,
    cycles: int | None,
    seed: int | None,
    name: str | None,
    resume: str | None,
    overrides: dict[str, Any],
) -> str | None:
    """Answer every mistake before a server starts, though the flow checks all this again.

    Returns:
        The id of the run to go on with.
    """
    Target.of(states, cycles)
    settings = requested_settings(game, seed, overrides)
    if resume:
        from storage.runs import open_tracking

        check_resume(preset, settings, name)
        return str(open_tracking().find_run(resume).info.run_id)
    if cluster := Settings.from_environment().cluster:
        from flows.runners import check_cluster

        requested_config(preset, settings, lambda config: config)  # what it lacks, the machine that optimizes will say
        check_cluster(cluster)
    else:
        requested_config(preset, settings)
    return None


def _open_all() -> None:
    """Import what takes seconds, and open the store, which takes as long when it is new."""
    from storage.runs import open_tracking

    # torch._dynamo is what the first optimizer imports.
    for module in ("flows.cli.display", "flows.train", "torch._dynamo"):
        import_module(module)
    open_tracking()


def _how_to_go_on(display: Any) -> str:
    return f"; what was trained is stored: dqn train --resume {display.run_id}" if display and display.run_id else ""
