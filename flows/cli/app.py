"""The command `dqn` and its subcommands.

Slow imports are inside the functions that need them, so that `dqn --help` is fast.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer
from typer.exceptions import TyperException

from dqn import __version__
from storage.environment import quiet_prefect, wants_traceback
from storage.errors import as_line, one_line

if TYPE_CHECKING:
    from dqn.config import Preset, TrainConfig

app = typer.Typer(
    name="dqn",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Run = Annotated[str, typer.Argument(metavar="RUN", help="Id or name of a run, or latest.", show_default=False)]
Checkpoint = Annotated[
    str, typer.Option(help="latest, best (the highest mean of its evaluations), or the number of a cycle.")
]
Epsilon = Annotated[
    float | None, typer.Option(help="Probability of a random action.", show_default="the run's evaluation_epsilon")
]
Game = Annotated[str | None, typer.Option(help="Another game with the same actions.")]
Seed = Annotated[int, typer.Option(help="Seed of the games and the policy.")]
Agent = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="Id or name of a run, latest, a registered agent such as models:/Breakout@champion, or a directory of "
        "dqn export.",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"dqn {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Learn to play Atari games from the screen by Q-learning."""


@app.command()
def train(
    preset: Annotated[
        Literal["fast", "tutorial"] | None, typer.Option(help="Recipe to start from.", show_default="fast")
    ] = None,
    game: Annotated[
        str | None,
        typer.Option(help="Gymnasium id, such as ALE/Breakout-v5 or Breakout-v0.", show_default="that of the preset"),
    ] = None,
    states: Annotated[
        int | None, typer.Option(help="Stop once the run has played this many states.", show_default="4400000")
    ] = None,
    cycles: Annotated[int | None, typer.Option(help="Stop once the run has done this many cycles.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of every random draw.", show_default="0")] = None,
    shards: Annotated[
        int | None,
        typer.Option(help="Number of parts into which the games are split, for a cluster.", show_default="1"),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run in MLflow.")] = None,
    resume: Annotated[
        str | None, typer.Option(metavar="RUN", help="Resume this run: its id or name, or latest.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="YAML file with fields, as `dqn config` prints it.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="FIELD=VALUE",
            help="Set a field, such as lanes=32. Can be repeated; `dqn config --preset fast` lists the fields.",
        ),
    ] = None,
    tags: Annotated[
        list[str] | None, typer.Option("--tag", metavar="NAME=VALUE", help="Tag the new run in MLflow.")
    ] = None,
) -> None:
    """Train an agent, or resume its training."""
    overrides = _overrides(settings or []) | ({} if shards is None else {"shards": shards})
    fields = _fields(config, preset) if config else None
    quiet_prefect()
    from flows.cli.train import run_training

    parameters: dict[str, Any] = {"preset": preset, "game": game, "states": states, "cycles": cycles}
    parameters |= {"seed": seed, "name": name, "resume": resume, "config": fields, "overrides": overrides}
    parameters["tags"] = _pairs("--tag", tags or [], "name=value, such as --tag purpose=baseline")
    run_id = run_training(parameters, _interrupt_on_signals())
    from dqn.metrics import COUNTER_STATES, SCORE_MEAN_100
    from storage.runs import open_tracking

    run = open_tracking().get_run(run_id)
    score = run.data.metrics.get(SCORE_MEAN_100)
    print(
        f"run {run.info.run_name} ({run_id}) has played {run.data.metrics[COUNTER_STATES]:,.0f} states; "
        f"mean score of its last 100 episodes: {'no episode ended' if score is None else f'{score:.2f}'}"
    )
    print(f"next: dqn play {run.info.run_name}    dqn evaluate {run.info.run_name}    dqn ui")


def _fields(path: Path, preset: str | None) -> dict[str, Any]:
    from flows.parameters import config_from_file

    return config_from_file(path, preset or "fast")


@app.command()
def sweep(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="YAML file of the sweep.", show_default=False)],
) -> None:
    """Train many configurations and find the best; started again, it goes on."""
    from flows.sweeps.definition import read_sweep

    wanted = read_sweep(file)
    quiet_prefect()
    from flows.cli.sweep import run_sweep

    run_sweep(wanted, file, _interrupt_on_signals())


@app.command()
def config(
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="[RUN]", help="Id or name of a run, latest, or a directory of dqn export.", show_default=False
        ),
    ] = None,
    preset: Annotated[Literal["fast", "tutorial"] | None, typer.Option(help="Print this recipe instead.")] = None,
) -> None:
    """Print the configuration of a run or a recipe, as a file for `dqn train --config`."""
    from dqn.config_file import as_file

    if (run is None) == (preset is None):
        raise ValueError("give a run, such as `dqn config latest`, or a recipe, such as `dqn config --preset fast`")
    found, name = _configuration(run, preset)
    print(as_file(found, f"{name}, for `dqn train --config FILE`."), end="")


def _configuration(run: str | None, preset: Preset | None) -> tuple[TrainConfig, str]:
    """The configuration of the preset or the run, and what to call it."""
    if preset:
        from dqn.config import make_config

        return make_config(preset), f"The preset {preset}"
    from flows.commands.agents import is_directory

    if is_directory(str(run)):
        from storage.formats.agent_export import read_export

        agent = read_export(Path(str(run)))
        return agent.metadata.config.for_another_machine(), f"The agent {agent.run_name}"
    from storage.runs import open_run, open_tracking

    stored = open_run(open_tracking().find_run(str(run)).info.run_id)
    return stored.config, f"The run {stored.name}"


@app.command()
def runs(as_json: AsJson = False) -> None:
    """List the runs, newest first."""
    from storage.run_list import list_runs

    rows = list_runs()
    if as_json:
        print(json.dumps([row._asdict() for row in rows], indent=1))
        return
    from flows.cli.display import print_table

    if not rows:
        print("no runs yet; start one with `dqn train`")
        return
    print_table(
        ["name", "id", "game", "preset", "status", "states", "mean score", "started"],
        [
            [
                row.name,
                row.id[:8],
                row.game,
                row.preset,
                row.status,
                f"{row.states:,}",
                "-" if row.score is None else f"{row.score:.2f}",
                row.started,
            ]
            for row in rows
        ],
        numbers={"states", "mean score"},
    )


@app.command()
def evaluate(
    run: Agent,
    checkpoint: Checkpoint = "latest",
    episodes: Annotated[
        int | None, typer.Option(help="Complete episodes to play.", show_default="the run's evaluation_episodes")
    ] = None,
    epsilon: Epsilon = None,
    game: Game = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Play complete episodes with a checkpoint and print the scores."""
    quiet_prefect()
    from flows.cli.display import Display
    from flows.commands.agents import open_agent
    from flows.commands.evaluation import evaluate_agent, evaluation_text

    with Display():
        result = evaluate_agent(open_agent(run, checkpoint), episodes, epsilon, game, seed)
    print(json.dumps(result, indent=1) if as_json else evaluation_text(result))


@app.command()
def record(
    run: Agent,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The .mp4 or .gif file to write.")],
    checkpoint: Checkpoint = "latest",
    epsilon: Epsilon = None,
    game: Game = None,
    seed: Seed = 0,
    seconds: Annotated[
        float | None,
        typer.Option(help="Seconds of play to record at most.", show_default="the whole episode; 20 for a .gif"),
    ] = None,
) -> None:
    """Record an episode that a checkpoint plays, as a video or as an animated GIF."""
    quiet_prefect()
    from flows.commands.agents import open_agent
    from flows.commands.record import record_video

    result = record_video(open_agent(run, checkpoint), out, epsilon, game, seed, seconds)
    what = "an episode of" if result["complete"] else "the first"
    print(f"{result['path']}: {what} {result['steps']:,} steps with a score of {result['score']:g}")


@app.command()
def play(
    run: Agent, checkpoint: Checkpoint = "latest", epsilon: Epsilon = None, game: Game = None, seed: Seed = 0
) -> None:
    """Show a checkpoint that plays, in a window, until the window is closed."""
    quiet_prefect()
    from flows.commands.agents import open_agent
    from flows.commands.play import play_in_window

    def print_episode(score: float, steps: int) -> None:
        print(f"an episode of {steps:,} steps with a score of {score:g}", flush=True)

    play_in_window(open_agent(run, checkpoint), epsilon, game, seed, print_episode)


@app.command()
def export(
    run: Agent,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="A new or empty directory.")],
    checkpoint: Checkpoint = "latest",
) -> None:
    """Write a checkpoint's weights as safetensors, with a JSON configuration and a model card."""
    quiet_prefect()
    from flows.commands.agents import open_agent
    from flows.commands.export import export_agent

    print(export_agent(open_agent(run, checkpoint), out))


@app.command()
def share(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN", help="Id or name of a run, latest, or a directory of dqn export.", show_default=False
        ),
    ],
    checkpoint: Annotated[
        str | None,
        typer.Option(help="latest, best, or the number of a cycle.", show_default="best, or that of the directory"),
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Promote it even if its score is not higher.")] = False,
    as_json: AsJson = False,
) -> None:
    """Register a checkpoint in MLflow under its game's name, and promote it if it beats the champion."""
    quiet_prefect()
    from flows.commands.agents import is_directory, open_agent
    from flows.commands.export import share_agent, sharing_text
    from storage.urls import REGISTERED_MODEL

    if run.startswith(REGISTERED_MODEL):
        raise ValueError(f"{run} is registered already; give a run (`dqn runs` lists them)")
    default = "latest" if is_directory(run) else "best"
    result = share_agent(open_agent(run, default if checkpoint is None else checkpoint), replace)
    print(json.dumps(result, indent=1) if as_json else sharing_text(result))


@app.command()
def inspect(
    run: Agent,
    cycle: Annotated[int | None, typer.Option(help="Number of the cycle.", show_default="the newest stored")] = None,
    state: Annotated[
        str | None,
        typer.Option(
            metavar="STEP:LANE", help="State for the outputs of the convolutions.", show_default="the highest Q-value"
        ),
    ] = None,
    channel: Annotated[int, typer.Option(help="Input channel of the weights of later convolutions.")] = 0,
) -> None:
    """Make a report with pictures of a cycle's play, backward sweep and network.

    For a directory, the agent plays a short cycle.
    """
    quiet_prefect()
    from flows.commands.inspection import inspect_by_name

    print(inspect_by_name(run, cycle, state, channel))


@app.command()
def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN RUN ...", help="Two to eight runs of one game; up to 100 with --group.", show_default=False
        ),
    ],
    group: Annotated[
        str | None,
        typer.Option(metavar="FIELD", help="Draw one line for each value of this field, with a band over the seeds."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare runs of one game: a table, and a report with their curves."""
    from flows.cli.display import print_table
    from flows.commands.compare import (
        COLUMNS,
        GROUP_COLUMNS,
        compare_groups,
        compare_runs,
        group_table_row,
        table_row,
    )
    from storage.runs import open_run, open_tracking

    found = [open_run(open_tracking().find_run(run).info.run_id) for run in runs]
    rows, report = compare_groups(found, group) if group else compare_runs(found)
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    if group:
        print_table([group, *GROUP_COLUMNS[1:]], [group_table_row(row) for row in rows], set(GROUP_COLUMNS[1:]))
    else:
        print_table(COLUMNS, [table_row(row) for row in rows], numbers=set(COLUMNS[1:5]) | {COLUMNS[-1]})
    print(report)


@app.command()
def verify(
    run: Run,
    replay: Annotated[bool, typer.Option("--replay", help="Replay the stored actions and compare frames.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check everything that is stored of a run, and print a digest of the whole run."""
    from flows.cli.display import Display
    from flows.commands.verify import verify_run
    from storage.runs import open_run, open_tracking

    stored_run = open_run(open_tracking().find_run(run).info.run_id)
    with Display():
        result = verify_run(stored_run, replay=replay)
    if as_json:
        print(json.dumps(result.as_dict(), indent=1))
    else:
        replayed = f", {result.frames:,} states replayed" if replay else ""
        print(
            f"run {result.run}: {result.units} units ({result.bytes:,} bytes) and {result.metrics:,} metrics are intact"
            f"{replayed}\ndigest of cycle {result.cycle}: {result.digest}"
        )
    for problem in result.problems:
        print(f"dqn: {problem}", file=sys.stderr)
    if result.problems:
        raise typer.Exit(1)


@app.command()
def ui(
    port: Annotated[int | None, typer.Option(help="Port of the UI.", show_default="DQN_MLFLOW_PORT, or 5000")] = None,
) -> None:
    """Serve the MLflow UI until Ctrl-C."""
    from flows.server.mlflow_server import run_mlflow_ui

    _interrupt_on_signals()
    run_mlflow_ui(port)


@app.command()
def serve() -> None:
    """Run a Prefect server, an MLflow server and a worker with the deployments, until Ctrl-C."""
    from flows.server.serve import serve_until_interrupted

    _interrupt_on_signals()
    serve_until_interrupted()


def main() -> None:
    """Run the command line. Every error is printed in one line, with status 2 if the user can correct the command."""
    try:
        _run()
    except SystemExit as stop:
        if "prefect.events.worker" not in sys.modules:
            raise
        from flows.server.processes import exit_after_draining

        exit_after_draining(int(stop.code or 0))


def _run() -> NoReturn:
    try:
        status: Any = app(standalone_mode=False)
        sys.exit(status if isinstance(status, int) else 0)
    except TyperException as error:
        # Without a subcommand there is no message, because the help has been printed.
        if error.format_message():
            _fail(error.format_message(), 2)
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    except ValueError as error:
        _fail(str(error), 2)
    except Exception as error:
        _fail(one_line(error), 1)


def _fail(message: str, status: int) -> NoReturn:
    if wants_traceback():
        raise
    print(f"dqn: {as_line(message)}", file=sys.stderr)
    sys.exit(status)


def _overrides(settings: list[str]) -> dict[str, Any]:
    overrides = _pairs("--set", settings, "field=value, such as --set lanes=32")
    for field in ("game", "seed"):
        if field in overrides:
            value = overrides[field].strip()
            raise ValueError(f"--set {field}={value}: {field} has an option of its own: --{field} {value}")
    return {field: value.strip() for field, value in overrides.items()}


def _pairs(option: str, given: list[str], how: str) -> dict[str, str]:
    """The values of an option that is given as NAME=VALUE, by name; `how` to write it is for the message."""
    pairs = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise ValueError(f"{option} {text}: write it as {how}")
        pairs[name.strip()] = value
    return pairs


def _interrupt_on_signals() -> list[int]:
    """Make SIGTERM and SIGHUP raise KeyboardInterrupt, as Ctrl-C does. The list collects the received signals."""
    received: list[int] = []

    def interrupt(number: int, frame: Any) -> None:
        received.append(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:  # not under nohup
        signal.signal(signal.SIGHUP, interrupt)
    return received
