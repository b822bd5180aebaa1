"""The flow `dqn`: play, sweep, optimize, once per cycle, until the run has played enough."""

from __future__ import annotations

import os

os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from prefect import flow, get_run_logger
from prefect.runtime import flow_run
from pydantic import Field

from dqn.config import TrainConfig, make_config
from dqn.environments import action_names, check_game
from dqn.hardware import prepare, resolve
from flows.reports import ProgressReport, cycle_line
from storage.runs import StoredRun, create_run, open_run, open_tracking
from storage.tracking import FLOW_RUN, TARGET
from tasks.collect_episodes import collect_episodes
from tasks.evaluate import evaluate
from tasks.live import release
from tasks.optimize import optimize
from tasks.progress import report_cycle
from tasks.update_q_values import update_q_values

DEFAULT_STATES = 4_000_000


@dataclass(frozen=True)
class Target:
    """When a run has played enough: after so many states, or after so many cycles."""

    states: int = 0
    cycles: int = 0

    @classmethod
    def of(cls, states: int | None, cycles: int | None) -> Target | None:
        """The target asked for, if one was.

        Raises:
            ValueError: both, or one that is not positive.
        """
        for name, value in (("states", states), ("cycles", cycles)):
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        if states is not None and cycles is not None:
            raise ValueError("give states or cycles, not both")
        return cls(states or 0, cycles or 0) if states or cycles else None

    @classmethod
    def parse(cls, text: str) -> Target:
        """The inverse of `str`."""
        name, _, value = text.partition("=")
        return cls(**{name: int(value)}) if value.isdecimal() else cls(states=DEFAULT_STATES)

    def __str__(self) -> str:
        return f"states={self.states}" if self.states else f"cycles={self.cycles}"

    def fraction(self, states: float, cycles: float) -> float:
        """How much of it is done; 1 or more when it is reached."""
        return states / self.states if self.states else cycles / self.cycles


@flow(name="dqn", flow_run_name="train", validate_parameters=True)
def train(
    preset: Literal["fast", "tutorial"] | None = None,
    game: str | None = None,
    states: Annotated[int, Field(ge=1)] | None = None,
    cycles: Annotated[int, Field(ge=1)] | None = None,
    seed: Annotated[int, Field(ge=0)] | None = None,
    name: str | None = None,
    resume: str | None = None,
    overrides: dict[str, Any] | None = None,
) -> str:
    """Learn to play an Atari game from its screen.

    Args:
        preset: Recipe to start from; fast unless told otherwise.
        game: Gymnasium id of the game, such as ALE/Breakout-v5 or Breakout-v0.
        states: Stop once the run has played this many states; 4000000 unless told otherwise.
        cycles: Stop once the run has done this many cycles, instead of counting states.
        seed: Seed of every random draw of the run; 0 unless told otherwise.
        name: Name of the run in MLflow; made up when left out.
        resume: Go on with this run (an id, a name, or latest) instead of starting one.
        overrides: Other fields of the configuration by name, such as lanes or epsilon.

    Returns:
        The id of the MLflow run.
    """
    target = Target.of(states, cycles)
    settings = requested_settings(game, seed, overrides)
    run = _resumed(resume, preset, settings, name) or _started(preset, settings, name, target)
    with run.writing():
        tags = {"dqn.resume": f"dqn train --resume {run.run_id}"}
        if target:
            tags[TARGET] = str(target)
        run.tracking.set_tags(run.run_id, {**tags, **_flow_run_tags(run)})
        run.tracking.set_status(run.run_id, "RUNNING")
        status = "KILLED"  # by Ctrl-C, SIGTERM or a cancellation, which are no exceptions of ours
        try:
            run_cycles(run)
            status = "FINISHED"
        except Exception:
            status = "FAILED"
            raise
        finally:
            release()
            run.tracking.set_status(run.run_id, status)
    return run.run_id


def requested_settings(game: str | None, seed: int | None, overrides: dict[str, Any] | None) -> dict[str, Any]:
    """All fields of the configuration that were asked for, in one mapping."""
    named = {"game": game, "seed": seed}
    return {**(overrides or {}), **{field: value for field, value in named.items() if value is not None}}


def requested_config(preset: str | None, settings: dict[str, Any]) -> TrainConfig:
    """The configuration asked for, resolved for this machine.

    Raises:
        ValueError: anything in it is wrong.
    """
    config = resolve(make_config(preset or "fast", settings))
    check_game(config.game)
    return config


def check_resume(preset: str | None, settings: dict[str, Any], name: str | None) -> None:
    """Raise a ValueError if something is asked of a resumed run that was decided when it started."""
    decided = [*settings, *(["preset"] if preset else []), *(["name"] if name else [])]
    if decided:
        raise ValueError(f"a resumed run keeps its {', '.join(decided)}; leave that out, or start a new run")


def run_cycles(run: StoredRun) -> None:
    """Run cycles until the target is reached, going on from the newest checkpoint."""
    log = get_run_logger()
    newest = run.pick_up()
    facts = run.facts(newest)
    prepare(facts.config)
    done = facts.counters
    target = Target.parse(run.tracking.client.get_run(run.run_id).data.tags.get(TARGET, ""))
    log.info("run %s (%s): %s, cycle %d", run.name, run.run_id, facts.config.game, done.cycle)
    fraction, cycle = target.fraction(done.states, done.cycle), done.cycle
    report = ProgressReport(run.name, fraction)
    summary: dict[str, float] = {}
    evaluate_if_due(run, facts.config, cycle, done.states)
    while fraction < 1:
        cycle += 1
        played = collect_episodes(run.run_id, cycle)
        swept = update_q_values(run.run_id, cycle)
        trained = optimize(run.run_id, cycle)
        summary |= played.figures | swept.figures | trained.figures
        evaluate_if_due(run, facts.config, cycle, int(summary["counter/states"]))
        fraction = target.fraction(summary["counter/states"], cycle)
        summary["fraction"] = fraction
        report_cycle(summary)
        report.update(summary)
        log.info(cycle_line(summary))
    report.finish()


def evaluate_if_due(run: StoredRun, config: TrainConfig, cycle: int, states: int) -> None:
    """Evaluate the checkpoint of `cycle` if another `evaluation_states` states were played since the last time."""
    every = config.evaluation_states
    if every and states // every > run.evaluated_states() // every:
        evaluate(run.run_id, cycle)


def _resumed(resume: str | None, preset: str | None, settings: dict[str, Any], name: str | None) -> StoredRun | None:
    """The run to go on with: the one named, or the one that this flow run had before it was retried."""
    if resume:
        check_resume(preset, settings, name)
        return open_run(open_tracking().find_run(resume).info.run_id)
    earlier = open_tracking().run_of_flow(flow_run.id) if flow_run.run_count > 1 else None
    return open_run(earlier.info.run_id) if earlier else None


def _started(preset: str | None, settings: dict[str, Any], name: str | None, target: Target | None) -> StoredRun:
    config = requested_config(preset, settings)
    tags = {
        "dqn.preset": preset or "fast",
        TARGET: str(target or Target(states=DEFAULT_STATES)),
        **({FLOW_RUN: str(flow_run.id)} if flow_run.id else {}),
    }
    return create_run(config, action_names(config.game), name, tags)


def _flow_run_tags(run: StoredRun) -> dict[str, str]:
    if not flow_run.id:
        return {}
    before = run.tracking.client.get_run(run.run_id).data.tags.get(FLOW_RUN, "").split()
    ids = [*before, *([] if str(flow_run.id) in before else [str(flow_run.id)])]
    return {FLOW_RUN: " ".join(ids[-50:])}
