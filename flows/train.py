"""The flow `dqn`: play, sweep, optimize, once per cycle, until the run reaches its target."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prefect import State, flow, get_run_logger
from prefect.deployments import run_deployment
from prefect.runtime import deployment, flow_run
from prefect.settings import PREFECT_UI_URL
from prefect.states import Failed
from prefect.task_runners import TaskRunner as PrefectTaskRunner
from prefect.task_runners import ThreadPoolTaskRunner

from dqn.config import DEFAULT_STATES, Preset, make_config
from dqn.envs.games import action_names, game_title
from dqn.metrics import COUNTER_STATES
from flows.failure import EXPECTED_ERRORS, log_retry_command, run_failure_command
from flows.parameters import (
    Config,
    Count,
    Game,
    Name,
    Overrides,
    Seed,
    Tags,
    Target,
    check_resume,
    requested_config,
    requested_settings,
)
from flows.prefect_report import TrainingReport
from flows.runners import TaskRunner, open_runner
from storage.publication import prune_old_cycles, publish, publish_waiting, resume_run
from storage.run_catalog import run_of_flow
from storage.run_page import describe, link_units, system_metrics
from storage.run_tags import FLOW_RUN, PRESET, TARGET
from storage.runs import StoredRun, create_run, open_run, open_tracking
from storage.selection import evaluated_states
from storage.units.unit import CHECKPOINT
from tasks.collect_episodes import collect_episodes, next_play
from tasks.evaluate import evaluate
from tasks.optimize import optimize
from tasks.progress import report_cycle, report_run
from tasks.unit_reference import UnitReference
from tasks.update_q_values import update_q_values

HANDED_OVER = "SCHEDULED"  # status in MLflow of a run that waits for its next flow run


def _flow_run_name() -> str:
    given = flow_run.parameters
    game = given.get("game") or (given.get("config") or {}).get("game") or make_config().game
    wanted = given.get("resume") or given.get("name") or game_title(game)
    return f"train {wanted}"


_one_thread: PrefectTaskRunner[Any] = ThreadPoolTaskRunner(max_workers=1)  # plays while the network is trained


@flow(
    name="dqn",
    flow_run_name=_flow_run_name,
    task_runner=_one_thread,
    on_failure=[run_failure_command],
    on_crashed=[log_retry_command, run_failure_command],
    on_cancellation=[log_retry_command],
)
def train(
    preset: Preset | None = None,
    game: Game | None = None,
    states: Count | None = None,
    cycles: Count | None = None,
    seed: Seed | None = None,
    name: Name | None = None,
    resume: Name | None = None,
    config: Config | None = None,
    overrides: Overrides | None = None,
    tags: Tags | None = None,
) -> str | State[str]:
    """Learn to play an Atari game from its screen.

    A flow run that is retried resumes its training run. Prefect becomes slow after thousands of tasks, so after
    DQN_FLOW_RUN_CYCLES cycles a new flow run continues, of the same deployment if there is one.

    Args:
        preset: Recipe to start from; the default is fast.
        game: Gymnasium id of the game, such as ALE/Breakout-v5 or Breakout-v0.
        states: Stop once the run has played this many states; the default is 4400000.
        cycles: Stop once the run has done this many cycles, instead of counting states.
        seed: Seed of every random draw of the run; the default is 0.
        name: Name of the run in MLflow; generated if left out.
        resume: Resume this run (an id, a name, or latest) instead of starting a new one.
        config: Fields of the configuration by name, as in a file of `dqn train --config`. The other parameters are
            on top.
        overrides: Other fields of the configuration by name, such as lanes or epsilon; a value that changes
            linearly with the states played is written start:end:states.
        tags: Tags of a new run in MLflow, such as mlflow.parentRunId, which nests it below another run.

    Returns:
        The id of the MLflow run. An error that the user can correct is a failed state with a message of one line.
    """
    try:
        target = Target.of(states, cycles)
        settings = requested_settings(config, game, seed, overrides)
        with open_runner() as runner:
            run = _before(preset, settings, name, resume) or _started(
                preset, settings, name, target, tags or {}, runner
            )
            reached = _train(run, target, runner)
    except EXPECTED_ERRORS as error:
        return Failed(message=str(error), data=error)
    if not reached and deployment.id:
        _hand_over(run)
    return run.run_id


def train_to_the_end(**parameters: Any) -> str:
    """Train in flow runs of this process, one after the other, until the target is reached.

    Returns:
        The id of the MLflow run.
    """
    run_id = str(train(**parameters))
    while open_tracking().get_run(run_id).info.status == HANDED_OVER:
        run_id = str(train(resume=run_id))
    return run_id


def _train(run: StoredRun, target: Target | None, runner: TaskRunner) -> bool:
    """Train as the run's one writer. Returns whether the target was reached."""
    report_run(run.run_id)
    with run.writing():
        if target:
            _check_target(run, target)
            run.tracking.set_tags(run.run_id, {TARGET: str(target)})
        run.tracking.set_tags(run.run_id, _flow_run_tags(run))
        run.tracking.set_status(run.run_id, "RUNNING")
        status = "KILLED"  # by Ctrl-C, SIGTERM or a cancellation, which raise no Exception
        try:
            with system_metrics(run):
                reached = run_cycles(run, runner)
            publish_waiting(run)
            status = "FINISHED" if reached else HANDED_OVER
            link_units(run)
        except Exception:
            status = "FAILED"
            raise
        finally:
            run.tracking.set_status(run.run_id, status)
    return reached


def _check_target(run: StoredRun, target: Target) -> None:
    """Raise a ValueError if the run is beyond a new `target`, which would be lower than its own without a cycle played.

    A run is usually a part of a cycle beyond its own target, which may be given again.
    """
    if str(target) == run.tracking.get_run(run.run_id).data.tags.get(TARGET):
        return
    counters = run.metadata(run.newest_checkpoint()).counters
    if target.fraction(counters.states, counters.cycle) > 1:
        name, asked, done = (
            ("states", target.states, counters.states) if target.states else ("cycles", target.cycles, counters.cycle)
        )
        raise ValueError(
            f"{name} is {asked:,}, but run {run.name} has done {done:,} {name}; ask for more, or leave it out"
        )


def _hand_over(run: StoredRun) -> None:
    """Start a new flow run of the same deployment, which continues the run."""
    assert deployment.id
    successor: Any = run_deployment(
        deployment.id,
        parameters={"resume": run.run_id},
        timeout=0,
        as_subflow=False,
        idempotency_key=f"{run.run_id} after {flow_run.id} {flow_run.run_count}",
    )
    get_run_logger().info("flow run %s (%s) continues the training", successor.name, successor.id)


def run_cycles(run: StoredRun, runner: TaskRunner) -> bool:
    """Run cycles from the newest checkpoint on, until the target or DQN_FLOW_RUN_CYCLES cycles are reached.

    Returns:
        Whether the target was reached.
    """
    log = get_run_logger()
    newest = resume_run(run)
    runner.begin(run)
    counters = run.metadata(newest).counters
    found = run.tracking.get_run(run.run_id)
    target = Target.parse(found.data.tags.get(TARGET, ""))
    describe(run, run.config.game, str(target), flow_run.ui_url if PREFECT_UI_URL.value() else None)
    address = _mlflow_address(run, found.info.experiment_id)
    log.info("run %s (%s) of %s from cycle %d; %s", run.name, run.run_id, run.config.game, counters.cycle, address)
    fraction = target.fraction(counters.states, counters.cycle)
    training_report = TrainingReport(run.run_id, run.name, address, fraction)
    summary: dict[str, float] = {}

    checkpoint, shards = UnitReference.of(newest), list(range(run.shards))
    player, since = next_play(run, newest)
    ahead: Callable[[], list[UnitReference]] | None = None
    evaluate_if_due(run, runner, checkpoint, counters.states)
    last = counters.cycle + run.settings.flow_run_cycles
    while fraction < 1 and checkpoint.cycle < last:
        experience = ahead() if ahead else runner.map(collect_episodes, run.run_id, player, shards, since)
        targets = runner.start(update_q_values, run.run_id, experience)  # first, because a worker keeps the order
        ahead = None
        if run.config.overlap == "yes" and not _is_last_cycle(run, target, checkpoint.cycle + 1, last):
            ahead = runner.start(collect_episodes, run.run_id, checkpoint, shards, tuple(experience))
        checkpoint = runner.run(optimize, run.run_id, checkpoint, experience, targets())
        player, since = checkpoint, ()

        publish_and_prune(run, checkpoint)
        summary |= checkpoint.metrics
        states = int(summary[COUNTER_STATES])
        evaluate_if_due(run, runner, checkpoint, states)
        fraction = summary["fraction"] = target.fraction(states, checkpoint.cycle)
        report_cycle(summary)
        training_report.update(summary, log.info)
    training_report.finish(log.info, _next_steps(run, address))
    return fraction >= 1


def _is_last_cycle(run: StoredRun, target: Target, cycle: int, last: int) -> bool:
    """Whether no cycle of this flow run follows `cycle`."""
    return cycle >= last or target.fraction(run.config.states_before(cycle + 1), cycle) >= 1


def evaluate_if_due(run: StoredRun, runner: TaskRunner, checkpoint: UnitReference, states: int) -> None:
    """Evaluate `checkpoint` if another `evaluation_states` states were played since the last evaluation."""
    every = run.config.evaluation_states
    if every and states // every > evaluated_states(run) // every:
        publish_and_prune(run, runner.run(evaluate, run.run_id, checkpoint))


def publish_and_prune(run: StoredRun, made: UnitReference) -> None:
    """Publish the metrics of a checkpoint or an evaluation; after a checkpoint, prune older units.

    Only the run's one writer may do so.
    """
    publish(run, run.unit(made.kind, made.cycle, known=made.digest))
    if made.kind == CHECKPOINT:
        prune_old_cycles(run, made.cycle, run.config)


def _mlflow_address(run: StoredRun, experiment_id: str) -> str:
    """The page of the run in the MLflow UI."""
    path = f"experiments/{experiment_id}/runs/{run.run_id}?workflowType=machine_learning"
    return f"{run.settings.mlflow_address}/#/{path}"


def _next_steps(run: StoredRun, address: str) -> str:
    return (
        f"- [metrics and checkpoints in MLflow]({address})\n"
        f"- `dqn evaluate {run.run_id}` plays complete episodes\n"
        f"- `prefect deployment run dqn/train -p resume={run.run_id} -p states=N` trains further"
    )


def _before(preset: str | None, settings: dict[str, Any], name: str | None, resume: str | None) -> StoredRun | None:
    """The run to resume: the run of this flow run if it is retried, or the run that `resume` names."""
    if flow_run.id and (run := run_of_flow(str(flow_run.id))):
        return run
    if resume:
        check_resume(preset, settings, name)
        return open_run(open_tracking().find_run(resume).info.run_id)
    return None


def _started(
    preset: str | None,
    settings: dict[str, Any],
    name: str | None,
    target: Target | None,
    tags: dict[str, str],
    runner: TaskRunner,
) -> StoredRun:
    config = requested_config(preset, settings, runner.resolve)
    all_tags = {
        **tags,
        PRESET: preset or "fast",
        TARGET: str(target or Target(states=DEFAULT_STATES)),
        **({FLOW_RUN: str(flow_run.id)} if flow_run.id else {}),
    }
    return create_run(config, action_names(config.game, config.full_action_set), name, all_tags)


def _flow_run_tags(run: StoredRun) -> dict[str, str]:
    if not flow_run.id:
        return {}
    before = run.tracking.get_run(run.run_id).data.tags.get(FLOW_RUN, "").split()
    ids = [*before, *([] if str(flow_run.id) in before else [str(flow_run.id)])]
    return {FLOW_RUN: " ".join(ids[-50:])}
