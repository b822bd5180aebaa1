"""Compare runs of one game: a table, and a report with their scores against states and against minutes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dqn.config import TrainConfig, nearest
from dqn.envs.games import game_title
from dqn.evaluation.evaluation import interquartile_mean
from dqn.metrics import (
    EVALUATION_MEAN,
    EVALUATION_MEAN_HIGH,
    EVALUATION_MEAN_LOW,
    SCORE_EPISODE,
    Curve,
    evaluation_metric,
)
from dqn.plots.curve_figures import RUN_COLORS, WINDOW_EPISODES, group_comparison, score_comparison
from flows.commands.html_report import Picture, Report, Table
from storage.runs import StoredRun

CURVES = (SCORE_EPISODE, EVALUATION_MEAN, EVALUATION_MEAN_LOW, EVALUATION_MEAN_HIGH)
COLUMNS = (
    "run",
    "states",
    "minutes",
    "states/s",
    f"last {WINDOW_EPISODES} episodes",
    "best evaluation",
    "after states",
)
GROUP_COLUMNS = ("value", "runs", "states", "score", "interval")
MOST_GROUPED_RUNS = 100


@dataclass(frozen=True)
class ComparedRun:
    """A run with its configuration and its metrics."""

    name: str
    run: StoredRun
    config: Mapping[str, str]
    curves: Mapping[str, Curve]
    minutes: Curve  # minutes of work against states played

    def summary(self) -> dict[str, Any]:
        """The values of the table's row, and the run's id; None for a value that the run does not have yet."""
        states, minutes = int(self.minutes.states[-1]), float(self.minutes.values[-1])
        scores, evaluated = self.curves.get(SCORE_EPISODE), self.curves.get(EVALUATION_MEAN)
        best = int(evaluated.values.argmax()) if evaluated else None
        return {
            "run": self.name,
            "id": self.run.run_id,
            "states": states,
            "minutes": minutes,
            "states_per_second": states / minutes / 60 if minutes else None,
            "training_score": float(scores.values[-WINDOW_EPISODES:].mean()) if scores else None,
            "evaluations": len(evaluated.values) if evaluated else 0,
            **{
                f"best_{name}": None if best is None else float(self.curves[evaluation_metric(name)].values[best])
                for name in ("mean", "mean_low", "mean_high")
            },
            "best_states": int(evaluated.states[best]) if evaluated and best is not None else None,
        }


def compare_runs(runs: list[StoredRun]) -> tuple[list[dict[str, Any]], str]:
    """Compare two to eight runs of one game, and log the report and its figures as artifacts of each run.

    Returns:
        The summary of each run, and the URL of the report.

    Raises:
        ValueError: there are fewer or more runs, a run is given twice, or the runs play different games.
    """
    compared = [_load(run, runs) for run in runs]
    title = _check(compared)
    summaries = [run.summary() for run in compared]
    report = _report(compared, summaries, title)
    folder = f"comparison/{'-'.join(run.run_id[:8] for run in runs)}"
    report.log(runs[0].tracking, [run.run_id for run in runs], folder)
    return summaries, f"{runs[0].artifacts}/{folder}/report.html"


def compare_groups(runs: list[StoredRun], field: str) -> tuple[list[dict[str, Any]], str]:
    """Compare groups of runs that differ in one field and in their seed only, and log the report to each run.

    Returns:
        For each value of the field: the number of its runs, and the interquartile mean of their last training episodes
        with its 95 % bootstrap interval, over the runs; and the URL of the report.

    Raises:
        ValueError: the runs play different games, differ in other fields, or all have the same value.
    """
    compared = [_load(run, runs) for run in runs]
    title = _check(compared, MOST_GROUPED_RUNS)
    groups = _groups(compared, field)
    rows = [_group_row(field, value, group) for value, group in groups.items()]
    report = Report(f"{title}: runs by {field}")
    report.properties = {run.name: run.run.run_id for run in compared}
    text = (
        f"Mean score of the last {WINDOW_EPISODES} training episodes of each run: the interquartile mean over the runs "
        "and its 95 % bootstrap interval."
    )
    report.add("Scores", text, [Table(list(GROUP_COLUMNS), [group_table_row(row) for row in rows])])
    curves = {
        f"{field} {value}": [run.curves[SCORE_EPISODE] for run in group if SCORE_EPISODE in run.curves]
        for value, group in groups.items()
    }
    caption = "Mean over the runs of a group; the band reaches from the lowest to the highest run."
    report.add("Curves", "", [Picture("groups-by-states", group_comparison(curves, title), caption)])
    folder = f"comparison/by-{field}-{runs[0].run_id[:8]}"
    report.log(runs[0].tracking, [run.run_id for run in runs], folder)
    return rows, f"{runs[0].artifacts}/{folder}/report.html"


def group_table_row(row: Mapping[str, Any]) -> list[str]:
    """Format the row of a group in the order of `GROUP_COLUMNS`."""
    score = row["training_score"]
    interval = "-" if row["low"] is None else f"{row['low']:.2f} to {row['high']:.2f}"
    return [
        str(row["value"]),
        str(row["runs"]),
        f"{row['states']:,}",
        "-" if score is None else f"{score:.2f}",
        interval,
    ]


def _groups(compared: list[ComparedRun], field: str) -> dict[str, list[ComparedRun]]:
    """The runs by the value of a field."""
    if field not in TrainConfig.model_fields:
        raise ValueError(f"--group {field}: unknown field{nearest(field, TrainConfig.model_fields)}")
    fields = dict.fromkeys(name for run in compared for name in run.config)
    differing = [name for name in fields if len({run.config.get(name, "-") for run in compared}) > 1]
    if others := [name for name in differing if name not in (field, "seed")]:
        raise ValueError(
            f"the runs differ in {', '.join(others)}, too; group runs that differ in {field} and seed only"
        )
    groups: dict[str, list[ComparedRun]] = {}
    for run in compared:
        groups.setdefault(run.config.get(field, "-"), []).append(run)
    if not 2 <= len(groups) <= len(RUN_COLORS):
        raise ValueError(f"the runs have {len(groups)} values of {field}; 2 to {len(RUN_COLORS)} can be compared")
    return groups


def _group_row(field: str, value: str, group: list[ComparedRun]) -> dict[str, Any]:
    summaries = [run.summary() for run in group]
    scores = np.array([found["training_score"] for found in summaries if found["training_score"] is not None])
    score: float | None = float(scores[0]) if len(scores) else None
    low: float | None = None
    high: float | None = None
    if len(scores) > 1:
        score, low, high = interquartile_mean([scores])
    return {
        "field": field,
        "value": value,
        "runs": len(group),
        "states": min(found["states"] for found in summaries),
        "training_score": score,
        "low": low,
        "high": high,
    }


def table_row(summary: Mapping[str, Any]) -> list[str]:
    """Format the summary of a run in the order of `COLUMNS`."""
    pace, score, best = (summary[name] for name in ("states_per_second", "training_score", "best_mean"))
    interval = "({best_mean_low:.2f} to {best_mean_high:.2f})".format_map(summary) if best is not None else ""
    return [
        summary["run"],
        f"{summary['states']:,}",
        f"{summary['minutes']:.1f}",
        "-" if pace is None else f"{pace:,.0f}",
        "-" if score is None else f"{score:.2f}",
        "-" if best is None else f"{best:.2f} {interval}",
        "-" if best is None else f"{summary['best_states']:,}",
    ]


def _load(run: StoredRun, runs: list[StoredRun]) -> ComparedRun:
    is_unique = sum(other.name == run.name for other in runs) == 1
    name = run.name if is_unique else f"{run.name} ({run.run_id[:8]})"
    config = run.tracking.get_run(run.run_id).data.params
    return ComparedRun(name, run, config, run.tracking.curves(run.run_id, CURVES), run.tracking.minutes(run.run_id))


def _check(compared: list[ComparedRun], most: int = len(RUN_COLORS)) -> str:
    """Check that the runs can be compared, and return the title of their game."""
    ids = {run.run.run_id for run in compared}
    if not 2 <= len(compared) <= most or len(ids) < len(compared):
        raise ValueError(
            f"got {len(compared)} runs, {len(ids)} of them different; compare takes 2 to {most} different "
            "runs; `dqn runs` lists them"
        )
    titles = {run.name: game_title(run.config["game"]) for run in compared}
    if len(set(titles.values())) > 1:
        games = ", ".join(f"{name} plays {title}" for name, title in titles.items())
        raise ValueError(f"scores of different games cannot be compared: {games}; give runs of one game")
    return next(iter(titles.values()))


def _report(compared: list[ComparedRun], summaries: list[dict[str, Any]], title: str) -> Report:
    report = Report(f"{title}: {' against '.join(run.name for run in compared)}")
    report.properties = {run.name: run.run.run_id for run in compared}
    report.notes += [f"Run {run.name} has no scores yet: no episode has ended." for run in compared if not run.curves]
    table = Table(list(COLUMNS), [table_row(summary) for summary in summaries])
    text = "The mean of an evaluation is followed by its 95 % bootstrap interval."
    report.add("Scores", text, [table, *_pictures(compared, title)])
    text = "Fields of the configuration that differ. Versions and machines may differ, too."
    report.add("Differences", text, _differences(compared))
    return report


def _pictures(compared: list[ComparedRun], title: str) -> list[Picture]:
    curves = {run.name: run.curves for run in compared if run.curves}
    minutes = {run.name: run.minutes for run in compared}
    if not curves:
        return []
    return [
        Picture("scores-by-states", score_comparison(curves, title), "Score against states played."),
        Picture(
            "scores-by-minutes",
            score_comparison(curves, title, minutes),
            "Score against minutes, from the start of the run to the commit of each cycle. Evaluations are included; "
            "pauses between an interruption and the resume are not.",
        ),
    ]


def _differences(compared: list[ComparedRun]) -> list[Table]:
    fields = dict.fromkeys(field for run in compared for field in run.config)
    rows = [[field, *(run.config.get(field, "-") for run in compared)] for field in fields]
    differing = [row for row in rows if len(set(row[1:])) > 1]
    return [Table(["field", *(run.name for run in compared)], differing)] if differing else []
