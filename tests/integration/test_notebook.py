"""The notebook, executed on a small run."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "docs" / "tutorial.ipynb"


def pictures(notebook: nbformat.NotebookNode) -> list[str]:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]


def test_notebook_runs_from_start_to_end(trained_run: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DQN_TUTORIAL_RUN", trained_run)
    monkeypatch.setenv("DQN_TUTORIAL_EPISODES", "2")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(NOTEBOOK, 4)
    client = NotebookClient(
        notebook,
        timeout=200,
        kernel_name="python3",
        resources={"metadata": {"path": str(ROOT / "docs")}},
    )
    client.execute()
    assert len(pictures(notebook)) >= 10
    text = "".join(output.text for cell in notebook.cells for output in cell.get("outputs", []) if "text" in output)
    assert "looked-at: 1,024 states of ALE/Breakout-v5 in 4 cycles" in text
    assert "state 0: before 0.000, after 0.859" in text
    assert "2 episodes of looked-at (cycle 4" in text


def test_notebook_has_small_pictures_and_no_errors() -> None:
    notebook = nbformat.read(NOTEBOOK, 4)
    kept = pictures(notebook)
    assert len(kept) >= 10 and sum(map(len, kept)) * 3 / 4 < 600_000
    kinds = {output.output_type for cell in notebook.cells for output in cell.get("outputs", [])}
    assert "error" not in kinds
    assert not {output.name for cell in notebook.cells for output in cell.get("outputs", []) if "name" in output} - {
        "stdout"
    }
    assert "/tmp" not in NOTEBOOK.read_text() and "/work" not in NOTEBOOK.read_text()
