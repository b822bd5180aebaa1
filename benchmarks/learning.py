"""Scores and training times of studies, in docs/scores.md and docs/results.md: `python -m benchmarks.learning NAME …`.

A study is a sweep in `benchmarks/studies`. This trains it by `dqn sweep`, evaluates the last checkpoint of each of its
runs, and writes tables and pictures. The same command continues an interrupted study. Minutes are the working time from
the creation of a run to its last checkpoint, without pauses; the command takes about ten seconds longer.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import EngFormatter

from benchmarks import report
from benchmarks.published_scores import DOPAMINE
from benchmarks.report import DOCS, HERE, Table, machine, read_results, results_file, write_results
from dqn.envs.games import game_title
from dqn.evaluation.evaluation import interquartile_mean
from dqn.evaluation.human_scores import SCORES, human_normalized
from dqn.metrics import COUNTER_STATES, SCORE_MEAN_100
from dqn.plots.curve_figures import RUN_COLORS
from dqn.plots.figures import new_figure
from flows.sweeps.definition import OPTIONS, Sweep, read_sweep
from flows.sweeps.results import results as trials_of
from flows.sweeps.study import Study
from storage.runs import StoredRun, open_tracking
from storage.sweeps import StoredSweep

NAME = "learning"
DQN = [sys.executable, "-m", "flows.cli"]
MILLION = "--set learning_rate=5e-4:1e-5:1000000"  # in the command of every study of the table of games
POINTS = 200  # stored points of a curve
STUDIES = {path.stem: read_sweep(path) for path in sorted((HERE / "studies").glob("*.yaml"))}
# Options of `dqn evaluate` for the last checkpoints, one for each protocol.
EVALUATIONS = {
    "ALE/Breakout-v5": ("--episodes 100", "--episodes 30 --game Breakout-v0"),
    "Breakout-v0": ("--episodes 30",),
}
OTHER_GAMES = ("pong", "qbert")


def main() -> None:
    """Run the named studies, and write the results of all studies so far."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning", description=__doc__)
    parser.add_argument("names", nargs="+", choices=STUDIES, metavar="NAME", help=f"one of: {', '.join(STUDIES)}")
    parser.add_argument("--home", type=Path, default=HERE.parent / "dqn-home", help="the directory of the runs")
    given = parser.parse_args()
    os.environ["DQN_HOME"] = str(given.home.absolute())
    results = read_results(NAME) if results_file(NAME).exists() else {}
    for name in given.names:
        for key, record in run_study(name, STUDIES[name], results):
            results[key] = record
            write_results(NAME, results)
    publish(results)


def publish(results: dict[str, Any]) -> None:
    """Write the tables and draw the figures."""
    report.write(tables(results))
    draw(results)


def run_study(name: str, study: Sweep, results: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Run a study to its end, and evaluate those of its runs that have no record in `results` yet."""
    dqn("sweep", str(HERE / "studies" / f"{name}.yaml"))
    found = open_tracking().sweeps(name)[0]
    stored = StoredSweep(found.info.run_id, name, open_tracking())
    for trial, seed in itertools.product(trials_of(Study(stored.study, study)), study.seeds):
        label = name if len(study.combinations()) == 1 else f"{name}-{trial.number}"
        run = stored.training(trial.number, seed)
        if run and "evaluations" not in results.get(f"{label}-seed{seed}", {}):
            yield f"{label}-seed{seed}", record_of(run, label, seed, command(study, dict(trial.params)))


def record_of(run: StoredRun, study: str, seed: int, command: str) -> dict[str, Any]:
    """The states, minutes, curves and evaluations of one run."""
    found = run.tracking.get_run(run.run_id)
    game = found.data.params["game"]
    protocols = EVALUATIONS.get(game, ("--episodes 30",))
    if found.data.params.get("frame_pooling") == "True":  # which other games than ALE/… do not have
        protocols = protocols[:1]
    return {
        "study": study,
        "seed": seed,
        "machine": machine(),
        "command": f"{command} --seed {seed}",
        "minutes": float(run.tracking.minutes(run.run_id).values[-1]),
        "states": int(found.data.metrics[COUNTER_STATES]),
        "revision": found.data.tags.get("mlflow.source.git.commit", ""),
        "game": game,
        "curves": curves(run.run_id),
        "evaluations": [json.loads(dqn("evaluate", run.run_id, "--json", *shlex.split(each))) for each in protocols],
    }


def command(study: Sweep, params: dict[str, Any]) -> str:
    """The command that trains one trial of a study by itself."""
    fields = study.settings(params)
    options = [f"--{name} {study.base[name]}" for name in OPTIONS if name in study.base]
    options += [f"--game {fields.pop('game')}"] if "game" in fields else []
    return " ".join(["dqn train", *options, *(f"--set {name}={value}" for name, value in fields.items())])


def dqn(*arguments: str) -> str:
    """Run the command `dqn` and return its standard output; its progress and errors appear in the terminal.

    Raises:
        SystemExit: the command failed; the status is that of the command.
    """
    done = subprocess.run([*DQN, *arguments], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout


def curves(run_id: str) -> dict[str, list[float]]:
    """The mean score of the last 100 training episodes and the minutes, both by states played."""
    tracking = open_tracking()
    score, minutes = tracking.curves(run_id, [SCORE_MEAN_100])[SCORE_MEAN_100], tracking.minutes(run_id)
    kept = np.linspace(0, len(score.states) - 1, POINTS).astype(int)
    states = score.states[kept]
    columns = {
        "states": states,
        "score": score.values[kept],
        "minutes": np.interp(states, minutes.states, minutes.values),
    }
    return {name: np.round(values, 3).tolist() for name, values in columns.items()}


def tables(results: dict[str, Any]) -> list[Table]:
    """The tables of scores, from the raw results."""
    where = "; ".join(dict.fromkeys(record["machine"] for record in results.values()))
    command = "python -m benchmarks.learning"
    return [
        Table(DOCS / "scores.md", f"{command}, commands", where, list(commands(results))),
        Table(DOCS / "scores.md", command, where, list(table(results))),
        Table(DOCS / "results.md", f"{command}, seeds and games together", where, list(summary(results))),
        Table(DOCS / "comparisons.md", f"{command}, games", where, list(games(results))),
    ]


def commands(results: dict[str, Any]) -> Iterator[str]:
    """The lines of the table with the command of each study."""
    yield "| study | command |"
    yield "|---|---|"
    for name, trained in {record["study"]: record["command"] for record in results.values()}.items():
        yield f"| {name} | `{trained.partition(' --seed')[0]}` |"


def table(results: dict[str, Any]) -> Iterator[str]:
    """The lines of the table with a row for each evaluation."""
    yield "| study, seed | states | minutes | evaluation | mean score (95 % interval) | sd; max; human-normalized |"
    yield "|---|---|---|---|---|---|"
    for record in results.values():
        for found in record["evaluations"]:
            human = found.get("human_normalized")
            yield (
                f"| {record['study']}, {record['seed']} | {record['states']:,} | {record['minutes']:.1f} "
                f"| {found['episodes']} of {found['game']}, epsilon {found['epsilon']:g} "
                f"| {found['mean']:.1f} ({found['mean_low']:.1f} to {found['mean_high']:.1f}) "
                f"| {found['sd']:.1f}; {found['max']:.0f}; {'-' if human is None else f'{human:.2f}'} |"
            )


def games(results: dict[str, Any]) -> Iterator[str]:
    """The lines of the table of all games after a million states, beside published scores."""
    yield "| game, study | evaluation (95 % interval) | training score | Dopamine's DQN | its IQN | random; human |"
    yield "|---|---|---|---|---|---|"
    for title, (dqn_score, iqn_score) in DOPAMINE.items():
        for record in (each for each in results.values() if game_title(each["game"]) == title):
            if MILLION not in record["command"]:
                continue
            mean, low, high = (record["evaluations"][0][figure] for figure in ("mean", "mean_low", "mean_high"))
            random, human = SCORES[title]
            yield (
                f"| {title}, {record['study']} | {mean:,.1f} ({low:,.1f} to {high:,.1f}) "
                f"| {record['curves']['score'][-1]:,.1f} | {dqn_score:,} | {iqn_score:,} | {random:,}; {human:,} |"
            )


def summary(results: dict[str, Any]) -> Iterator[str]:
    """The lines of the table with a row for each protocol of a study with several seeds, and one for all games."""
    yield "| study | evaluation | mean | interquartile mean of the episodes (95 % interval) |"
    yield "|---|---|---|---|"
    for name in dict.fromkeys(record["study"] for record in results.values()):
        seeds = [record for record in results.values() if record["study"] == name]
        for found in zip(*(record["evaluations"] for record in seeds), strict=True) if len(seeds) > 1 else ():
            episodes = f"{found[0]['episodes']} of {found[0]['game']} for each seed"
            yield _summary_line(f"{name}, {len(seeds)} seeds", episodes, [each["scores"] for each in found])
    games = [
        results[run]["evaluations"][0] for name in ("two-epochs", *OTHER_GAMES) if (run := f"{name}-seed0") in results
    ]
    scores = [[human_normalized(found["game"], score) for score in found["scores"]] for found in games]
    names = ", ".join(game_title(found["game"]) for found in games)
    yield _summary_line(f"two-epochs on {names}, seed 0, human-normalized", "as in the table of scores", scores)


def _summary_line(study: str, episodes: str, scores: list[list[float]]) -> str:
    middle, low, high = interquartile_mean(list(map(np.array, scores)))
    mean = np.mean([np.mean(each) for each in scores])
    return f"| {study} | {episodes} | {mean:.3g} | {middle:.3g} ({low:.3g} to {high:.3g}) |"


def draw(results: dict[str, Any]) -> None:
    """Draw a figure for each game: training scores and evaluations by states played and by minutes.

    All versions of a game share a figure; all seeds of a study have the same color and line style.
    """
    for title in {game_title(record["game"]) for record in results.values()}:
        runs = [record for record in results.values() if game_title(record["game"]) == title]
        draw_game(title, runs)


def draw_game(title: str, runs: list[dict[str, Any]]) -> None:
    """Draw the figure of one game from the records of its runs."""
    studies = dict.fromkeys(run["study"] for run in runs)
    styles = dict(zip(studies, itertools.product(("-", ":"), RUN_COLORS), strict=False))
    figure = new_figure(10, 4.6, f"{title}: last 100 training episodes, and evaluations with 95 % intervals")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, column in zip(panels, ("states", "minutes"), strict=True):
        for run in runs:
            (line, color), found, x = styles[run["study"]], run["evaluations"][0], run["curves"][column]
            axes.plot(x, run["curves"]["score"], line, color=color, lw=1.5)
            interval = [[found["mean"] - found["mean_low"]], [found["mean_high"] - found["mean"]]]
            axes.errorbar(x[-1], found["mean"], interval, color=color, marker="o", ms=5, capsize=3, lw=1.5)
        axes.set_xlabel("states played" if column == "states" else "minutes of work")
        axes.set_xlim(left=0)
    for study, (line, color) in styles.items():
        panels[0].plot([], [], line, color=color, lw=2, label=study)
    panels[0].set_ylabel("mean score [points]")
    if all(min(run["curves"]["score"]) >= 0 for run in runs):
        panels[0].set_ylim(bottom=0)
    panels[0].xaxis.set_major_formatter(EngFormatter(sep=""))
    panels[0].legend(frameon=False, fontsize=9, loc="lower right")
    figure.savefig(DOCS / f"learning-{title.lower()}.png", dpi=100)


if __name__ == "__main__":
    main()
