"""The flow `dqn-sweep`: train many configurations, and find the best."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from contextvars import copy_context
from typing import Annotated, Any

import numpy as np
from optuna.trial import FrozenTrial, TrialState
from prefect import State, flow, get_run_logger
from prefect.runtime import deployment, flow_run
from prefect.states import Failed
from pydantic import BeforeValidator, WithJsonSchema

from dqn.metrics import COUNTER_STATES, EVALUATION_MEAN, LOSS_MEAN
from flows.evaluate import evaluate
from flows.failure import EXPECTED_ERRORS, log_retry_command, run_failure_command
from flows.parameters import Target
from flows.sweeps.child_flows import ChildFlows, Deployments, FlowFailed, FlowKilled, Processes
from flows.sweeps.definition import Sweep, check_sweep
from flows.sweeps.report import log_report
from flows.sweeps.status import SweepStatus
from flows.sweeps.study import Study
from flows.train import HANDED_OVER, train_to_the_end
from storage.errors import StorageError
from storage.run_tags import FLOW_RUN
from storage.runs import StoredRun
from storage.selection import evaluated_states
from storage.sweeps import StoredSweep, open_sweep

ATTEMPTS = 3  # how often a training whose process dies is started
RELEASE_SECONDS = 60  # a killed sweep's trainings end themselves within about a second


def _checked(content: Any) -> Any:
    """Raise a ValueError if the mapping could not be the file of a sweep."""
    if isinstance(content, dict):
        check_sweep(content)
    return content


Definition = Annotated[dict[str, Any], BeforeValidator(_checked), WithJsonSchema({"type": "object"})]


def _flow_run_name() -> str:
    return f"sweep {(flow_run.parameters.get('definition') or {}).get('name', '')}"


@flow(
    name="dqn-sweep",
    flow_run_name=_flow_run_name,
    on_failure=[run_failure_command],
    on_crashed=[log_retry_command, run_failure_command],
    on_cancellation=[log_retry_command],
)
def sweep(definition: Definition) -> str | State[str]:
    """Train many configurations, each with several seeds, and find the one with the highest objective.

    A sweep that is started again goes on: it repeats no finished training, and resumes the others from their
    checkpoints. Started by a deployment, it starts a flow run of the deployment dqn/train for each training; otherwise
    each training is a process on the same machine.

    Args:
        definition: The parts of a sweep, by name, as in a file of `dqn sweep`.

    Returns:
        The id of the sweep's run in MLflow. An error that the user can correct is a failed state with a message of
        one line.
    """
    try:
        return run_sweep(check_sweep(definition))
    except EXPECTED_ERRORS as error:
        return Failed(message=str(error), data=error)


def run_sweep(wanted: Sweep) -> str:
    """Run a sweep as its one writer, and log its report. Returns the id of its run in MLflow."""
    tags = {FLOW_RUN: str(flow_run.id)} if flow_run.id else {}
    with open_sweep(wanted.name, wanted.game, tags) as stored:
        study = Study(stored.study, wanted)
        children: ChildFlows = (
            Deployments() if deployment.id else Processes({"train": train_to_the_end, "evaluate": evaluate})
        )
        status = SweepStatus(stored.run_id, study)
        with _status_in_mlflow(stored):
            stored.tracking.log_text(stored.run_id, "sweep.json", wanted.model_dump_json(indent=1))
            _Trials(wanted, stored, study, children, status).run()
            address = log_report(stored, study)
        status.finish(get_run_logger().info, address)
    return stored.run_id


@contextmanager
def _status_in_mlflow(stored: StoredSweep) -> Iterator[None]:
    stored.tracking.set_status(stored.run_id, "RUNNING")
    status = "KILLED"  # by Ctrl-C, SIGTERM or a cancellation, which raise no Exception
    try:
        yield
        status = "FINISHED"
    except Exception:
        status = "FAILED"
        raise
    finally:
        stored.tracking.set_status(stored.run_id, status)


class _Trials:
    """Runs the trials of a sweep, as many at a time as `parallel` needs to keep its trainings busy."""

    def __init__(
        self, wanted: Sweep, stored: StoredSweep, study: Study, children: ChildFlows, status: SweepStatus
    ) -> None:
        self._sweep, self._stored, self._study = wanted, stored, study
        self._children, self._status = children, status
        self._trainings = ThreadPoolExecutor(wanted.parallel, "training")

    def run(self) -> None:
        """Run the trials that are not finished, and then new ones until the sweep has all."""
        together = -(-self._sweep.parallel // len(self._sweep.seeds))
        unfinished = iter([trial for trial in self._study.trials if trial.state == TrialState.RUNNING])
        with ThreadPoolExecutor(together, "trial") as pool:
            running: set[Future[None]] = set()
            try:
                while True:
                    while len(running) < together and (trial := next(unfinished, None) or self._study.propose()):
                        running.add(_submit(pool, self._run_trial, trial))
                    self._status.show()
                    if not running:
                        return
                    done, running = wait(running, timeout=1, return_when=FIRST_COMPLETED)
                    for future in done:
                        future.result()
            finally:
                self._children.stop()
                self._trainings.shutdown(cancel_futures=True)

    def _run_trial(self, trial: FrozenTrial) -> None:
        """Train a trial with every seed, and store its objective, or why it failed."""
        try:
            self._sweep.config(trial.params)
        except ValueError as error:
            self._study.fail(trial, str(error))
            return
        try:
            for states in self._sweep.prune.after_states if self._sweep.prune else []:
                # A sweep that was killed may have stored the objective, but not whether the trial is pruned.
                objective = trial.intermediate_values.get(states)
                if objective is None:
                    objective = self._objective(trial, {"states": states})
                if self._study.report(trial, states, objective):
                    self._end(trial, objective, pruned=True)
                    return
            self._end(trial, self._objective(trial, self._sweep.target), pruned=False)
        except (FlowFailed, FlowKilled) as error:
            self._study.fail(trial, str(error))
            self._status.changed()

    def _objective(self, trial: FrozenTrial, target: dict[str, int]) -> float:
        """Train a trial with every seed until `target`. Returns the mean of the objective over the seeds."""
        futures = [_submit(self._trainings, self._run_training, trial, seed, target) for seed in self._sweep.seeds]
        wait(futures)
        return float(np.mean([future.result() for future in futures]))

    def _end(self, trial: FrozenTrial, objective: float, *, pruned: bool) -> None:
        runs = [run for seed in self._sweep.seeds if (run := self._stored.training(trial.number, seed))]
        self._stored.record_objective(runs, objective)
        self._study.finish(trial, objective, pruned=pruned)
        self._status.changed()

    def _run_training(self, trial: FrozenTrial, seed: int, target: dict[str, int]) -> float:
        """Train a trial with one seed until `target`, and evaluate it if the objective needs that.

        Returns:
            Its objective.

        Raises:
            FlowFailed: the training or its evaluation has failed, or it has no objective.
            FlowKilled: its process has died `ATTEMPTS` times.
            StorageError: a server does not answer, the disk is full, or the sweep stops.
        """
        number = trial.number
        run = self._training(number, seed)
        if run is None or not _is_finished(run, target):
            self._repeated("train", number, seed, lambda: self._train_parameters(trial, seed, target), target)
            run = self._training(number, seed)
        if run is None:
            raise FlowFailed("its run was deleted")
        latest = run.tracking.get_run(run.run_id).data.metrics
        if not math.isfinite(latest.get(LOSS_MEAN, 0)):
            raise FlowFailed(f"it diverged: its mean loss is {latest[LOSS_MEAN]}")
        if self._sweep.objective == EVALUATION_MEAN and evaluated_states(run) < latest[COUNTER_STATES]:
            self._repeated("evaluate", number, seed, lambda: {"run": run.run_id}, target)
            latest = run.tracking.get_run(run.run_id).data.metrics
        value = latest.get(self._sweep.objective)
        if value is None or not math.isfinite(value):
            raise FlowFailed(f"it has no {self._sweep.objective} after {latest[COUNTER_STATES]:,.0f} states")
        self._study.record_seed(trial, seed, value)
        self._status.changed()
        return value

    def _training(self, number: int, seed: int) -> StoredRun | None:
        """The training of a trial with a seed, once no process writes it.

        A flow run of a deployment goes on when the sweep is killed, so it may take long. A training that died before
        its first checkpoint cannot be resumed, so it is deleted.
        """
        deadline = time.monotonic() + RELEASE_SECONDS
        while run := self._stored.training(number, seed):
            is_held = run.is_held()
            if run.is_started() and not is_held:
                return run
            if time.monotonic() > deadline:
                if is_held and self._children.end_with_the_sweep:
                    raise StorageError(f"run {run.name} is being trained by another process; stop it, and start again")
                if not is_held:
                    run.tracking.delete_run(run.run_id)
            time.sleep(0.2 if self._children.end_with_the_sweep else 2)
        return None

    def _wait_for_successors(self, number: int, seed: int) -> None:
        """Wait while a training is continued by flow runs that its first flow run has started.

        Raises:
            FlowKilled: one of them has died.
        """
        while run := self._stored.training(number, seed):
            status = run.tracking.get_run(run.run_id).info.status
            if status not in (HANDED_OVER, "RUNNING"):
                break
            time.sleep(1)
        if run and status != "FINISHED":
            raise FlowKilled(f"its run is {status.lower()}")

    def _train_parameters(self, trial: FrozenTrial, seed: int, target: dict[str, int]) -> dict[str, Any]:
        if run := self._training(trial.number, seed):
            return {"resume": run.run_id, **target}
        fields = self._sweep.settings(trial.params)
        game = fields.pop("game", None)
        return {
            "preset": self._sweep.base.get("preset"),
            "game": game,
            "seed": seed,
            "name": f"{self._sweep.name}-{trial.number}-seed{seed}",
            "overrides": fields,
            "tags": self._stored.training_tags(trial.number, seed),
            **target,
        }

    def _repeated(
        self, name: str, number: int, seed: int, parameters: Callable[[], dict[str, Any]], target: dict[str, int]
    ) -> None:
        """Run a flow, and run it again if its process dies."""
        for attempt in range(1, ATTEMPTS + 1):
            key = f"{self._stored.run_id} {name} {number} {seed} {target} {attempt}"
            try:
                self._children.run(name, parameters(), key, lambda summary: self._status.follow(number, seed, summary))
                self._wait_for_successors(number, seed)
                return
            except FlowKilled as error:
                if attempt == ATTEMPTS:
                    raise FlowKilled(f"{error} ({ATTEMPTS} times)") from None
                get_run_logger().warning("trial %d, seed %d: %s; it is started again", number, seed, error)


def _submit(pool: ThreadPoolExecutor, call: Callable[..., Any], *arguments: Any) -> Future[Any]:
    """Run a call in a thread of `pool`, in the context of this flow run."""
    return pool.submit(copy_context().run, call, *arguments)


def _is_finished(run: StoredRun, target: dict[str, int]) -> bool:
    counters = run.metadata(run.newest_checkpoint()).counters
    return Target(**target).fraction(counters.states, counters.cycle) >= 1
