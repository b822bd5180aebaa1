"""Scores and training times of recipes, in docs/scores.md and docs/results.md: `python -m benchmarks.learning NAME …`.

Trains the named studies, one seed after another, with the command `dqn` in a home of their own, and evaluates the
last checkpoint of each run. The same command continues an interrupted study. Minutes are the working time from the
creation of a run to its last checkpoint, without pauses; the command takes about ten seconds longer.
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
from typing import Any, NamedTuple

import numpy as np
from matplotlib.ticker import EngFormatter
from scipy import stats

from benchmarks.report import HERE, machine, replace_table
from dqn.envs.games import game_title
from dqn.evaluation.evaluation import BOOTSTRAP_SAMPLES
from dqn.evaluation.human_scores import human_normalized
from dqn.metrics import COUNTER_STATES, SCORE_MEAN_100
from dqn.plots.curve_figures import RUN_COLORS
from dqn.plots.figures import new_figure
from storage.runs import open_tracking

DOCS, RESULTS = HERE.parent / "docs", HERE / "results" / "learning.json"
DQN = [sys.executable, "-m", "flows.cli"]
POINTS = 200  # stored points of a curve


class Study(NamedTuple):
    """One recipe: its training, its seeds, and the evaluations of its last checkpoints."""

    train: str  # options of `dqn train`
    seeds: tuple[int, ...]
    evaluate: tuple[str, ...]  # options of `dqn evaluate`, one for each protocol


def falling_until(states: int) -> str:
    """Options for a training of `states` states, in which the learning rate of `fast` falls until the end."""
    return f"--set learning_rate=5e-4:1e-5:{states} --states {states}"


TWO_EPOCHS = "--set max_epochs=2 --set batch_size=256"
AN_HOUR_OF_TWO_EPOCHS = f"{TWO_EPOCHS} {falling_until(3_600_000)}"
BREAKOUT = ("--episodes 100", "--episodes 30 --game Breakout-v0")
OTHER_GAMES = {game.lower(): game for game in ("Pong", "SpaceInvaders", "Seaquest", "Qbert", "BeamRider", "Enduro")}
STUDIES = {
    "fast": Study("", (0, 1, 2), BREAKOUT),
    "half-hour": Study(falling_until(2_350_000), (0,), BREAKOUT),
    "long": Study(falling_until(11_400_000), (0,), BREAKOUT),
    "two-epochs": Study(AN_HOUR_OF_TWO_EPOCHS, (0, 1, 2), BREAKOUT),
    "half-hour-two-epochs": Study(f"{TWO_EPOCHS} {falling_until(1_700_000)}", (0,), BREAKOUT),
    "nature": Study(f"--set network=nature {TWO_EPOCHS} {falling_until(4_500_000)}", (0,), BREAKOUT),
    "nature-one-epoch": Study(
        "--set network=nature --set learning_rate=2.5e-4:1e-5:4000000 "
        "--set epsilon=1:0.01:1000000 --set ema_decay=0 --set threads=1 --states 4000000",
        (0,),
        BREAKOUT,
    ),
    "tutorial": Study("--preset tutorial --states 1180000", (0,), ("--episodes 30",)),
    **{
        name: Study(f"--game ALE/{game}-v5 {AN_HOUR_OF_TWO_EPOCHS}", (0,), ("--episodes 30",))
        for name, game in OTHER_GAMES.items()
    },
}


def main() -> None:
    """Run the named studies, and write the results of all studies so far."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning", description=__doc__)
    parser.add_argument("names", nargs="+", choices=STUDIES, metavar="NAME", help=f"one of: {', '.join(STUDIES)}")
    parser.add_argument("--home", type=Path, default=HERE.parent / "dqn-home", help="the directory of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", help="use these seeds instead of those of the study")
    given = parser.parse_args()
    os.environ["DQN_HOME"] = str(given.home.absolute())
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in given.names:
        study = STUDIES[name]
        for seed in given.seeds or study.seeds:
            record = results.setdefault(f"{name}-seed{seed}", {"study": name, "seed": seed, "machine": machine()})
            run_study(f"{name}-seed{seed}", study, record)
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    publish(results)


def run_study(run: str, study: Study, record: dict[str, Any]) -> None:
    """Train a run to its end, unless it has finished, evaluate its last checkpoint, and fill `record`."""
    if "evaluations" in record:
        return
    options = [*shlex.split(study.train), "--seed", str(record["seed"])]
    before = [found for found in open_tracking().runs() if found.info.run_name == run]
    if not before:
        dqn("train", "--name", run, *options)
    elif before[0].info.status != "FINISHED":
        dqn("train", "--resume", before[0].info.run_id)
    found = open_tracking().find_run(run)
    record["command"] = f"dqn train {shlex.join(options)}"
    record["minutes"] = float(open_tracking().minutes(found.info.run_id).values[-1])
    record["states"] = int(found.data.metrics[COUNTER_STATES])
    record["revision"] = found.data.tags.get("mlflow.source.git.commit", "")
    record["game"] = found.data.params["game"]
    record["curves"] = curves(found.info.run_id)
    record["evaluations"] = [json.loads(dqn("evaluate", run, "--json", *shlex.split(each))) for each in study.evaluate]


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


def publish(results: dict[str, Any]) -> None:
    """Write the tables and draw the figures."""
    replace_table(DOCS / "scores.md", "python -m benchmarks.learning, commands", list(commands(results)))
    replace_table(DOCS / "scores.md", "python -m benchmarks.learning", list(table(results)))
    replace_table(
        DOCS / "results.md", "python -m benchmarks.learning, seeds and games together", list(summary(results))
    )
    draw(results)


def commands(results: dict[str, Any]) -> Iterator[str]:
    """The lines of the table with the command of each study."""
    yield "| study | command |"
    yield "|---|---|"
    found = {record["study"]: record["command"] for record in results.values()}
    for name, command in found.items():
        yield f"| {name} | `{f'dqn train {STUDIES[name].train}'.strip() if name in STUDIES else command}` |"


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


def summary(results: dict[str, Any]) -> Iterator[str]:
    """The lines of the table with a row for each protocol of a study with several seeds, and one for all games."""
    yield "| study | evaluation | mean | interquartile mean of the episodes (95 % interval) |"
    yield "|---|---|---|---|"
    for name in STUDIES:
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


def interquartile_mean(strata: list[np.ndarray]) -> tuple[float, float, float]:
    """Interquartile mean of the scores of episodes, with its 95 % stratified bootstrap interval.

    `strata` are the scores of each seed or game; all strata have the same weight.
    Returns the mean, and the low and the high end of the interval.
    Source: Agarwal et al. 2021, Deep Reinforcement Learning at the Edge of the Statistical Precipice.
    """
    size = int(np.lcm.reduce([len(scores) for scores in strata]))

    def of_pool(*samples: np.ndarray, axis: int = -1) -> np.ndarray:
        pool = [np.repeat(scores, size // scores.shape[axis], axis) for scores in samples]
        middle: np.ndarray = stats.trim_mean(np.concatenate(pool, axis), 0.25, axis)
        return middle

    found = stats.bootstrap(strata, of_pool, n_resamples=BOOTSTRAP_SAMPLES, batch=500, method="percentile", rng=0)
    return float(of_pool(*strata)), *map(float, found.confidence_interval)


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
