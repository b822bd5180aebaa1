"""Lines of progress of tasks that run at the same time."""

from __future__ import annotations

import logging

import pytest

from dqn.metrics import COUNTER_CYCLES, COUNTER_STATES, LOSS_MEAN, SCHEDULE_EPSILON
from flows.cli.display import Display, print_table
from tasks.progress import progress, report, report_cycle, stopped


def test_line_shows_what_is_played_while_the_network_is_trained(capsys: pytest.CaptureFixture[str]) -> None:
    summary = {COUNTER_CYCLES: 4.0, COUNTER_STATES: 400.0, SCHEDULE_EPSILON: 1.0, LOSS_MEAN: 0.5, "fraction": 1.0}
    with Display():
        report("collect-episodes", 5, 1, 2)
        report("update-q-values", 4, 0, 1)
        report("optimize", 4, 3, 4)
        report_cycle(summary)
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "cycle 4 | 400 states | epsilon 1.000 | mean score - | loss 0.5000 | collect-episodes 50 %"


def test_cells_of_a_table_are_shown_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    """A name in MLflow can be anything."""
    print_table(["name", "id"], [["[red]x[/red]", "a\x1b[2Jb\nc"]], set())
    assert capsys.readouterr().out.split() == ["name", "id", "[red]x[/red]", r"a\x1b[2Jb", "c"]


def test_wait_for_a_lease_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with Display():
        logging.getLogger("storage.lease").warning("run %s: waiting", "mine")
    assert capsys.readouterr().err == "run mine: waiting\n"


def test_report_fails_while_tasks_are_stopped() -> None:
    from concurrent.futures import CancelledError

    with stopped(), pytest.raises(CancelledError, match="optimize 4 was stopped"):
        report("optimize", 4, 3, 4)
    report("optimize", 4, 3, 4)
    assert progress.level == logging.INFO
