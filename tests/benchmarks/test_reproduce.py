"""Published tables and scores can be had again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import agents, report, reproduce
from benchmarks.report import Table
from dqn.evaluation.evaluation import Evaluation, Protocol
from flows.commands.agents import Agent
from storage.formats.agent_export import read_export

TABLES = list(reproduce.published_tables())
BREAKOUT = agents.AGENTS / "breakout"


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.command)
def test_table_of_a_page_is_that_of_its_raw_results(table: Table) -> None:
    finding = reproduce.check_table(table)
    assert finding.is_same, finding.text


def test_every_measured_table_is_checked() -> None:
    marked = "".join(page.read_text() for page in report.DOCS.glob("*.md")).count("<!-- measured by ")
    assert marked == len(TABLES)


def test_changed_number_is_found(tmp_path: Path) -> None:
    page = tmp_path / TABLES[0].page.name
    page.write_text(TABLES[0].page.read_text().replace("states/s", "states/min", 1))
    finding = reproduce.check_table(TABLES[0]._replace(page=page))
    assert not finding.is_same and "DIFFERS" in finding.text


@pytest.mark.parametrize(("is_same", "status"), [(True, 0), (False, 1)])
def test_exit_status_says_whether_all_is_the_same(
    is_same: bool, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The tables are; what is found of the agents is given."""
    monkeypatch.setattr(reproduce, "check_agent", lambda directory: reproduce.Finding(directory.name, is_same))
    with pytest.raises(SystemExit) as ended:
        reproduce.main()
    assert ended.value.code == status
    assert len(capsys.readouterr().out.splitlines()) == len(TABLES) + len(agents.directories())


@pytest.mark.parametrize(
    ("added", "processor", "is_same", "says"),
    [
        (0.0, "as published", True, "the same 100 scores"),
        (1.0, "another", True, "in the range of chance"),
        (1.0, "as published", False, "DIFFERS"),
        (100.0, "another", False, "DIFFERS"),
    ],
)
def test_scores_of_an_agent_are_compared_with_its_published_ones(
    added: float, processor: str, is_same: bool, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = read_export(BREAKOUT).evaluation
    assert published is not None
    (model,) = agents.read_front_matter(BREAKOUT)["model-index"]
    made_on = model["results"][0]["metrics"][0]["args"]["processor"]
    monkeypatch.setattr(agents, "processor", lambda: made_on if processor == "as published" else processor)

    def play(agent: Agent, protocol: Protocol) -> Evaluation:
        assert protocol == published.protocol
        return replace(published, scores=[score + added for score in published.scores])

    finding = reproduce.check_agent(BREAKOUT, play)
    assert finding.is_same == is_same and says in finding.text
