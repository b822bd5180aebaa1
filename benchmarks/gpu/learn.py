"""Score after some minutes of training on a GPU.

Trains with the preset `fast` for `--minutes` at `--rate` states per second, which `benchmarks.gpu.bench` measures in
the part `cycle`. The learning rate falls until then. A training that is slower than `--rate` is interrupted when it
has taken 1.2 times as long. Complete episodes with the last checkpoint follow.

Results: learn.json, learn.log, evaluation.txt, curves.json (params and metrics), weights.safetensors and
checkpoint.json (the last checkpoint), and the home of the run, learn-home.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.common import Results, parser, run_dqn, set_options, use_home
from benchmarks.report import machine
from dqn.metrics import COUNTER_STATES, SCORE_EPISODE

NAME = "learn"
CURVES = ("score/", "speed/", "loss/", "evaluation/", "counter/", "q_values/")
SLACK, START_SECONDS = 1.2, 60  # the limit of the training's time: SLACK times the minutes, and the start
EVALUATION_SECONDS = 300


def train(home: Path, log: Path, states: int, seconds: float, options: Sequence[str]) -> None:
    """Train a run of `states` states, in which the learning rate falls until the end."""
    fields = set_options([f"learning_rate=5e-4:1e-5:{states}"])
    run_dqn(home, ["train", "--name", NAME, "--states", str(states), *fields, *options], log, seconds)


def keep(home: Path, out: Path) -> dict[str, float]:
    """Write the curves and the last checkpoint of the run to `out`, and return its last states and score."""
    from storage.runs import open_run, open_tracking

    use_home(home)
    tracking = open_tracking()
    found = tracking.find_run(NAME)
    run = open_run(found.info.run_id)
    names = [name for name in found.data.metrics if name.startswith(CURVES) and name != SCORE_EPISODE]
    curves = {
        name: [(point.step, point.value, point.timestamp) for point in tracking.history(run.run_id, name)]
        for name in names
    }
    (out / "curves.json").write_text(json.dumps({"params": found.data.params, "metrics": curves}) + "\n")
    checkpoint = run.newest_checkpoint()
    for name in ("weights.safetensors", "checkpoint.json"):
        shutil.copy(checkpoint.directory / name, out)
    minutes = tracking.minutes(run.run_id)
    return {
        "states": found.data.metrics[COUNTER_STATES],
        "minutes": float(minutes.values[-1]),
        **{name: value for name, value in found.data.metrics.items() if name.startswith("evaluation/")},
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, evaluate and keep the results; return the exit status."""
    options = parser("learn", __doc__)
    options.add_argument("--rate", type=float, required=True, help="states per second of whole cycles")
    options.add_argument("--minutes", type=float, default=6, help="minutes of training: 6")
    options.add_argument("--episodes", type=int, default=30, help="complete episodes of the evaluation: 30")
    options.add_argument("--seed", type=int, default=0, help="seed of the run: 0")
    options.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="another field of `dqn train`"
    )
    given = options.parse_args(arguments)
    states = round(given.rate * 60 * given.minutes)
    if states < 1:
        options.error(f"--rate {given.rate:g} and --minutes {given.minutes:g} must both be above 0")
    out, home = given.out, given.out / "learn-home"
    if home.exists():
        options.error(f"{home} exists; remove it, or name another directory with --out")
    results = Results(out / "learn.json")
    results.add("machine", "machine", machine())
    log, evaluation = out / "learn.log", out / "evaluation.txt"
    for old in (log, evaluation):
        old.unlink(missing_ok=True)
    home.mkdir()
    with results.attempt("train"):
        limit = SLACK * 60 * given.minutes + START_SECONDS
        train(home, log, states, limit, ["--seed", str(given.seed), *set_options(given.set)])
    with results.attempt("evaluate"):
        run_dqn(home, ["evaluate", NAME, "--episodes", str(given.episodes)], evaluation, EVALUATION_SECONDS)
        print(evaluation.read_text(), end="", flush=True)
    with results.attempt("result"):
        for name, value in keep(home, out).items():
            results.add("result", name, value)
    return results.finish()


if __name__ == "__main__":
    sys.exit(main())
