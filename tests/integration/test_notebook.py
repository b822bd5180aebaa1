"""The notebook, executed again: its text and its numbers are those of the published agent."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from benchmarks import agents
from flows.parameters import requested_config

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "docs" / "tutorial.ipynb"
LARGEST = 700_000  # bytes of all pictures


def pictures(notebook: nbformat.NotebookNode) -> list[list[str]]:
    """The pictures of each cell."""
    return [
        [output.data["image/png"] for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]
        for cell in notebook.cells
    ]


def texts(notebook: nbformat.NotebookNode) -> list[str]:
    """The text that each cell prints."""
    return ["".join(output.text for output in cell.get("outputs", []) if "text" in output) for cell in notebook.cells]


def test_notebook_prints_the_same_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the digit on the kind of processor for which the agent was published; elsewhere with as many pictures."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    kept, notebook = nbformat.read(NOTEBOOK, 4), nbformat.read(NOTEBOOK, 4)
    resources = {"metadata": {"path": str(ROOT / "docs")}}
    NotebookClient(notebook, timeout=200, kernel_name="python3", resources=resources).execute()
    assert list(map(len, pictures(notebook))) == list(map(len, pictures(kept)))
    assert list(map(bool, texts(notebook))) == list(map(bool, texts(kept)))
    check = agents.read_front_matter(agents.AGENTS / "breakout")["check"]
    if check["processor"] == agents.processor():
        assert texts(notebook) == texts(kept)


def test_kept_notebook_has_small_pictures_and_no_errors() -> None:
    notebook = nbformat.read(NOTEBOOK, 4)
    kept = [picture for cell in pictures(notebook) for picture in cell]
    assert len(kept) == 25 and sum(map(len, kept)) * 3 / 4 < LARGEST
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert {output.output_type for output in outputs} == {"execute_result", "stream"}
    assert {output.name for output in outputs if "name" in output} == {"stdout"}
    assert "/tmp" not in NOTEBOOK.read_text() and "/work" not in NOTEBOOK.read_text()


def test_notebook_has_a_chapter_for_each_entry_of_its_table() -> None:
    cells = nbformat.read(NOTEBOOK, 4).cells
    headings = {line.lstrip("# ") for cell in cells if cell.cell_type == "markdown" for line in cell.source.split("\n")}
    linked = [part.split(")")[0] for part in cells[0].source.split("](#")[1:]]
    assert len(linked) == 21
    assert [name for name in linked if name.replace("-", " ") not in headings | {"Q learning", "Q values"}] == []


def test_options_of_the_exercises_exist() -> None:
    table = nbformat.read(NOTEBOOK, 4).cells[-1].source
    options = [option for line in table.splitlines() for option in re.findall(r"`(--[^`]+)`", line)]
    assert len(options) == 20
    for option in options:
        fields = dict(setting.split("=", 1) for setting in re.findall(r"--set (\S+)", option))
        fields |= {"game": found[0]} if (found := re.findall(r"--game (\S+)", option)) else {}
        requested_config("fast", fields)
        others = set(re.findall(r"--(\w+)", option)) - {"set", "game"}
        assert others <= {"states", "resume", "seed", "preset"}
