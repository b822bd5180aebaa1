"""Comparison of real runs, one of which has no scores yet."""

from pathlib import Path

import pytest

from dqn.envs.games import action_names
from flows.commands.compare import compare_groups, compare_runs, group_table_row, table_row
from flows.parameters import requested_config
from flows.train import train
from storage.runs import StoredRun, create_run, open_run
from storage.selection import evaluations

pytestmark = pytest.mark.usefixtures("home", "prefect_server")


@pytest.fixture
def run(trained_run: str, home: object) -> StoredRun:
    return open_run(trained_run)


def new_run(name: str, game: str = "ALE/Breakout-v5") -> StoredRun:
    return create_run(requested_config("fast", {"lanes": 2, "game": game}), action_names(game), name, {})


def test_compare_logs_a_report_to_every_run(run: StoredRun) -> None:
    """The rows have scores and pace; the report has both figures and the differing fields only."""
    other = new_run("not-played-yet")
    rows, report = compare_runs([run, other])
    first, second = rows
    best = max(unit.metric("evaluation/mean") for unit in evaluations(run))
    assert (first["states"], first["evaluations"], first["best_mean"]) == (1024, 2, best)
    assert first["best_mean_low"] <= best <= first["best_mean_high"] and first["minutes"] > 0
    assert (second["states"], second["minutes"], second["best_mean"]) == (0, 0, None)
    assert table_row(second)[1:] == ["0", "0.0", "-", "-", "-", "-"]
    text = Path(report).read_text()
    assert text.count("data:image/png;base64,") == 2
    assert "http://" not in text and "https://" not in text, "it opens offline"
    assert "Run not-played-yet has no scores yet" in text
    assert "<td>lanes</td><td>8</td><td>2</td>" in text and "<td>game</td>" not in text
    for each in (run, other):
        listed = (each.artifacts / "comparison" / f"{run.run_id[:8]}-{other.run_id[:8]}").names()
        assert listed == ["report.html", "scores-by-minutes.png", "scores-by-states.png"]


def test_compare_accepts_runs_without_scores() -> None:
    twins = [new_run("empty"), new_run("empty")]
    rows, report = compare_runs(twins)
    assert [row["states"] for row in rows] == [0, 0]
    assert [row["run"] for row in rows] == [f"empty ({run.run_id[:8]})" for run in twins], "the ids tell them apart"
    assert "data:image" not in Path(report).read_text() and "Differences" not in Path(report).read_text()


def test_compare_refuses_one_run_and_different_games(run: StoredRun) -> None:
    with pytest.raises(ValueError, match="compare takes 2 to 8 different runs"):
        compare_runs([run])
    with pytest.raises(ValueError, match="compare takes 2 to 8 different runs"):
        compare_runs([run, run])
    with pytest.raises(ValueError, match="looked-at plays Breakout, ponged plays Pong; give runs of one game"):
        compare_runs([run, new_run("ponged", "ALE/Pong-v5")])


def test_group_has_a_row_for_each_value_of_a_field(run: StoredRun, small: dict[str, object]) -> None:
    """The runs of a group differ in their seed; other differences are refused."""
    settings = {**small, "episode_frames_limit": 40, "threads": 1, "precision": "float32"}
    runs = [
        open_run(train(cycles=1, seed=seed, name=f"grouped-{value}-{seed}", overrides={**settings, "td_lambda": value}))
        for value in (0.5, 0.9)
        for seed in (0, 1)
    ]
    rows, report = compare_groups(runs, "td_lambda")
    assert [(row["value"], row["runs"], row["states"]) for row in rows] == [("0.5", 2, 64), ("0.9", 2, 64)]
    for row in rows:
        assert row["low"] <= row["training_score"] <= row["high"]
    assert group_table_row(rows[0])[:3] == ["0.5", "2", "64"]
    text = Path(report).read_text()
    assert text.count("data:image/png;base64,") == 1
    with pytest.raises(ValueError, match="the runs differ in td_lambda, too; group runs that differ in seed and seed"):
        compare_groups(runs, "seed")
    with pytest.raises(ValueError, match="the runs have 1 values of td_lambda; 2 to 8 can be compared"):
        compare_groups(runs[:2], "td_lambda")
    with pytest.raises(ValueError, match="--group td_lamda: unknown field; did you mean td_lambda"):
        compare_groups(runs, "td_lamda")
