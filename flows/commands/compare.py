"""Compare runs of one game: a table, and their scores against states and against minutes, in one report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dqn.envs.games import game_title
from dqn.metrics import (
    EVALUATION_MEAN,
    EVALUATION_MEAN_HIGH,
    EVALUATION_MEAN_LOW,
    SCORE_EPISODE,
    Curve,
    evaluation_metric,
)
from dqn.plots.curve_figures import RUN_COLORS, WINDOW_EPISODES, score_comparison
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


@dataclass(frozen=True)
class ComparedRun:
    """One of the runs that are compared."""

    name: str
    run: StoredRun
    config: Mapping[str, str]
    curves: Mapping[str, Curve]
    minutes: Curve

    def figures(self) -> dict[str, Any]:
        """What the table says of it; None where there is nothing to say."""
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
    """Compare runs of one game; the report and its figures are kept among the artifacts of each of them.

    Returns:
        The figures of each run, and where the report is.

    Raises:
        ValueError: the runs are not between two and eight different ones of one game.
    """
    compared = [_open(run, runs) for run in runs]
    title = _check(compared)
    figures = [entry.figures() for entry in compared]
    report = Report(f"{title}: {' against '.join(entry.name for entry in compared)}")
    report.properties = {entry.name: entry.run.run_id for entry in compared}
    report.notes += [f"Run {c.name} has no scores yet: no episode of it has ended." for c in compared if not c.curves]
    text = "An evaluation's mean stands with its 95 % bootstrap interval."
    report.add("Scores", text, [Table(list(COLUMNS), [table_row(row) for row in figures]), *_pictures(compared, title)])
    text = "What is not named here is the same, save for versions and machines."
    report.add("How they differ", text, _differences(compared))
    folder = f"comparison/{'-'.join(run.run_id[:8] for run in runs)}"
    for run in runs:
        run.tracking.log_report(run.run_id, folder, report.figures(), report.html())
    return figures, f"{runs[0].artifacts}/{folder}/report.html"


def table_row(figures: Mapping[str, Any]) -> list[str]:
    """The figures of a run as texts, in the order of `COLUMNS`."""
    pace, score, best = (figures[name] for name in ("states_per_second", "training_score", "best_mean"))
    interval = "({best_mean_low:.2f} to {best_mean_high:.2f})".format_map(figures) if best is not None else ""
    return [
        figures["run"],
        f"{figures['states']:,}",
        f"{figures['minutes']:.1f}",
        "-" if pace is None else f"{pace:,.0f}",
        "-" if score is None else f"{score:.2f}",
        "-" if best is None else f"{best:.2f} {interval}",
        "-" if best is None else f"{figures['best_states']:,}",
    ]


def _open(run: StoredRun, runs: list[StoredRun]) -> ComparedRun:
    twins = sum(other.name == run.name for other in runs)
    name = run.name if twins == 1 else f"{run.name} ({run.run_id[:8]})"
    config = run.tracking.get_run(run.run_id).data.params
    return ComparedRun(name, run, config, run.tracking.curves(run.run_id, CURVES), run.tracking.minutes(run.run_id))


def _check(compared: list[ComparedRun]) -> str:
    """The title of the runs' game."""
    ids = {entry.run.run_id for entry in compared}
    if not 2 <= len(compared) <= len(RUN_COLORS) or len(ids) < len(compared):
        raise ValueError(f"compare takes 2 to {len(RUN_COLORS)} runs, each once; `dqn runs` lists them")
    titles = {entry.name: game_title(entry.config["game"]) for entry in compared}
    if len(set(titles.values())) > 1:
        games = ", ".join(f"{name} plays {title}" for name, title in titles.items())
        raise ValueError(f"scores of different games do not compare: {games}; give runs of one game")
    return next(iter(titles.values()))


def _pictures(compared: list[ComparedRun], title: str) -> list[Picture]:
    curves = {entry.name: entry.curves for entry in compared if entry.curves}
    minutes = {entry.name: entry.minutes for entry in compared}
    if not curves:
        return []
    return [
        Picture("scores-by-states", score_comparison(curves, title), "What the agent learns from what it has seen."),
        Picture(
            "scores-by-minutes",
            score_comparison(curves, title, minutes),
            "What it learns in how much time: from a run's start to the commit of each cycle, evaluations included, "
            "pauses between an interruption and its resume left out.",
        ),
    ]


def _differences(compared: list[ComparedRun]) -> list[Table]:
    fields = dict.fromkeys(field for entry in compared for field in entry.config)
    rows = [[field, *(entry.config.get(field, "-") for entry in compared)] for field in fields]
    differing = [row for row in rows if len(set(row[1:])) > 1]
    return [Table(["field", *(entry.name for entry in compared)], differing)] if differing else []
