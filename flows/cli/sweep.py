"""Sweeps from the command line: with a Prefect server of their own, and with a table on the terminal."""

from __future__ import annotations

import os
import signal
import sys
from importlib import import_module
from pathlib import Path

import httpx
import typer

from flows.server.embedded import start_embedded_prefect_server
from flows.server.processes import prefect_unreachable
from flows.sweeps.definition import Sweep
from storage.environment import PREFECT_API_URL
from storage.errors import StorageError, one_line


def run_sweep(wanted: Sweep, file: Path, received_signals: list[int]) -> None:
    """Run the flow `sweep` to its end, and print its trials and what to do next.

    Args:
        wanted: the sweep.
        file: where it was read, for messages.
        received_signals: numbers of the signals that have interrupted this process, other than SIGINT.

    Raises:
        ValueError: the sweep was started with other parts.
        StorageError: a server or the disk failed; the message has the command that goes on.
        typer.Exit: the process was interrupted; the command that goes on is on stderr.
    """
    go_on = f"go on with: dqn sweep {file}"
    try:
        start_embedded_prefect_server(meanwhile=_prepare)
        from flows.cli.display import Display
        from flows.sweep import sweep

        with Display():
            run_id = str(sweep(wanted.model_dump(mode="json", exclude_none=True)))
    except KeyboardInterrupt:
        print(f"stopped; {go_on}", file=sys.stderr)
        raise typer.Exit(128 + (received_signals or [signal.SIGINT])[0]) from None
    except httpx.TransportError:
        raise StorageError(f"{prefect_unreachable(os.environ.get(PREFECT_API_URL))}; {go_on}") from None
    except (StorageError, OSError) as error:
        raise StorageError(f"{one_line(error)}; {go_on}") from None
    _print_result(run_id, wanted)


def _prepare() -> None:
    """Import the slow modules while the server starts."""
    for module in ("flows.cli.display", "flows.sweep"):
        import_module(module)


def _print_result(run_id: str, wanted: Sweep) -> None:
    from flows.cli.display import print_table
    from flows.sweeps.report import winner_command
    from flows.sweeps.results import columns, results, row
    from flows.sweeps.study import Study
    from storage.runs import open_tracking
    from storage.sweeps import StoredSweep

    stored = StoredSweep(run_id, wanted.name, open_tracking())
    study = Study(stored.study, wanted)
    found = results(study)
    print_table(columns(study), [row(study, each) for each in found], {"trial", "objective"})
    print(f"report: {stored.artifacts}/report/report.html")
    if found and found[0].status == "complete":
        print(f"next: {winner_command(stored, wanted)}")
