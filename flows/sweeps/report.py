"""The report of a sweep: the trials, which fields matter, the curves, and the command that trains the winner."""

from __future__ import annotations

import csv
import io

import optuna
from optuna.trial import TrialState

from dqn.config_file import as_file
from dqn.envs.games import game_title
from dqn.metrics import SCORE_EPISODE
from dqn.plots.curve_figures import RUN_COLORS, group_comparison
from flows.commands.html_report import Picture, Report, Table
from flows.sweeps.definition import Sweep
from flows.sweeps.field_figures import importance_figure, objective_by_field, parallel_coordinates
from flows.sweeps.results import TrialResult, columns, results, row, short
from flows.sweeps.study import Study
from storage.sweeps import StoredSweep

BEST = "best.yaml"  # the artifact with the configuration of the winner
FEWEST = 8  # trials from which on the importance of a field means something


def log_report(stored: StoredSweep, study: Study) -> str:
    """Log the report of a sweep, its table and the configuration of its winner as artifacts of its run.

    Returns:
        The URL of the report.
    """
    found = results(study)
    texts = {"trials.csv": _csv(study, found)}
    if winner := _winner(found):
        config = study.sweep.config(winner.params).model_copy(update={"seed": study.sweep.seeds[0]})
        texts[BEST] = as_file(
            config, f"Trial {winner.number} of the sweep {stored.name}, for `dqn train --config FILE`."
        )
        stored.tracking.log_metric(stored.run_id, "sweep/best", winner.objective or 0.0, len(found))
    for name, text in texts.items():
        stored.tracking.log_text(stored.run_id, name, text)
    _report(stored, study, found).log(stored.tracking, [stored.run_id], "report")
    return f"{stored.artifacts}/report/report.html"


def winner_command(stored: StoredSweep, sweep: Sweep) -> str:
    """The command that trains the winner again."""
    target = " ".join(f"--{name} {value}" for name, value in sweep.target.items())
    return f"dqn train --config {stored.artifacts.removeprefix('file://')}/{BEST} {target}"


def _winner(found: list[TrialResult]) -> TrialResult | None:
    return found[0] if found and found[0].status == "complete" else None


def _csv(study: Study, found: list[TrialResult]) -> str:
    """The trials as a CSV file, with the objective of each seed in a column of its own."""
    file = io.StringIO()
    writer = csv.writer(file)
    seeds = study.sweep.seeds
    writer.writerow(
        ["trial", *study.sweep.fields, *(f"seed {seed}" for seed in seeds), "objective", "status", "reason"]
    )
    for each in found:
        values = [each.seeds.get(seed, "") for seed in seeds]
        params = [each.params.get(name, "") for name in study.sweep.fields]
        objective = "" if each.objective is None else each.objective
        writer.writerow([each.number, *params, *values, objective, each.status, each.reason])
    return file.getvalue()


def _report(stored: StoredSweep, study: Study, found: list[TrialResult]) -> Report:
    sweep, winner = study.sweep, _winner(found)
    report = Report(f"Sweep {stored.name} on {game_title(sweep.game)}")
    count = {status: sum(each.status == status for each in found) for status in ("complete", "pruned", "failed")}
    report.properties = {
        "objective": f"{sweep.objective}, mean over {len(sweep.seeds)} seeds",
        "trials": ", ".join(f"{number} {status}" for status, number in count.items() if number),
        "target": ", ".join(f"{value:,} {name}" for name, value in sweep.target.items()),
    }
    if winner:
        report.properties["winner"] = f"trial {winner.number}: " + ", ".join(
            f"{name} {short(value)}" for name, value in winner.params.items()
        )
        report.properties["train it"] = winner_command(stored, sweep)
    else:
        report.notes.append("No trial is complete, so there is no winner.")
    text = (
        "Best first. The objective of a pruned trial belongs to the number of states at which it ended. The interval "
        "is the 95 % bootstrap interval of the interquartile mean over the seeds; with few seeds it is a hint only."
    )
    report.add("Trials", text, [Table(columns(study), [row(study, each) for each in found])])
    report.add("Fields", "Which fields matter, and what was tried.", _field_pictures(study))
    text = f"The {len(RUN_COLORS)} best trials."
    report.add("Curves", text, _curves(stored, study, found))
    return report


def _field_pictures(study: Study) -> list[Picture]:
    tried = optuna.create_study(direction="maximize")
    tried.add_trials([trial for trial in study.trials if trial.state == TrialState.COMPLETE])
    varied = [name for name in study.sweep.fields if len({str(trial.params[name]) for trial in tried.trials}) > 1]
    if not varied:
        return []
    objective = study.sweep.objective
    text = "Each dot is a complete trial. A bar is the mean of the trials of a value."
    pictures = [Picture("objective-by-field", objective_by_field(tried, varied, objective), text)]
    if len(tried.trials) >= FEWEST:
        text = "The share of the differences between trials that each field explains (fANOVA, Hutter and others 2014)."
        pictures.append(Picture("importances", importance_figure(tried, varied), text))
    if len(varied) > 1:
        text = "Each line is a complete trial; its color is the objective."
        pictures.append(Picture("parallel-coordinates", parallel_coordinates(tried, varied, objective), text))
    return pictures


def _curves(stored: StoredSweep, study: Study, found: list[TrialResult]) -> list[Picture]:
    groups = {}
    for each in found[: len(RUN_COLORS)]:
        runs = [run for seed in study.sweep.seeds if (run := stored.training(each.number, seed))]
        curves = [run.tracking.curves(run.run_id, [SCORE_EPISODE]).get(SCORE_EPISODE) for run in runs]
        label = ", ".join(f"{name} {short(value)}" for name, value in each.params.items())
        groups[f"{each.number}: {label}"] = [curve for curve in curves if curve]
    if not any(groups.values()):
        return []
    caption = "Mean over the seeds; the band reaches from the lowest to the highest seed."
    return [Picture("curves", group_comparison(groups, game_title(study.sweep.game)), caption)]
