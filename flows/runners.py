"""Task runners: tasks run in this process, or on the workers of the Dask cluster that DQN_CLUSTER names."""

from __future__ import annotations

import importlib.util
import logging
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from typing import Any, Protocol
from urllib.parse import urlsplit

from prefect import State, Task, get_run_logger
from prefect.futures import PrefectFuture
from prefect.settings import get_current_settings
from prefect.utilities.callables import get_call_parameters
from prefect.utilities.engine import link_state_to_task_run_result

from dqn.config import TrainConfig
from dqn.hardware import prepare, resolve
from storage.provenance import versions
from storage.runs import StoredRun, open_run
from storage.settings import Settings
from tasks import process_cache
from tasks.progress import report, stopped
from tasks.unit_reference import UnitReference, task_cycle

COLLECTOR, OPTIMIZER = "collector", "optimizer"  # resources that workers offer
CONNECT_SECONDS = 10
WORKER_SECONDS = 60  # how long a resource that is needed may be missing
CHECK_SECONDS = 120  # for a worker to import everything and to open the run
POLL_SECONDS = 2


class TaskRunner(Protocol):
    """Where and how the tasks of a flow run are run."""

    def resolve(self, config: TrainConfig) -> TrainConfig:
        """`config` with every `auto` decided for the machine that optimizes."""

    def begin(self, run: StoredRun) -> None:
        """Prepare for the tasks of `run`."""

    def map(self, task: Task[..., UnitReference], *arguments: Any) -> list[UnitReference]:
        """Run a task once for each shard.

        A list among `arguments` has one entry for each shard; every other argument is passed to all task runs.
        """

    def start(self, task: Task[..., UnitReference], *arguments: Any) -> Callable[[], list[UnitReference]]:
        """As `map`, but the tasks run beside what follows. The returned function waits for their results."""

    def run(self, task: Task[..., UnitReference], *arguments: Any) -> UnitReference:
        """Run a task once, where the network is trained."""


@contextmanager
def open_runner() -> Iterator[TaskRunner]:
    """The task runner that the settings choose: this process, or the Dask cluster that DQN_CLUSTER names.

    Raises:
        ValueError: DQN_CLUSTER is set, but something that it needs is not.
        ConnectionError: the scheduler of the cluster does not answer, or no worker offers to play.
    """
    address = Settings.from_environment().cluster
    if not address:
        runner = LocalRunner()
        try:
            yield runner
        finally:
            runner.stop()
            process_cache.clear()
        return
    check_cluster(address)
    from prefect_dask.client import PrefectDaskClient

    connect: Any = PrefectDaskClient
    try:
        client = connect(address, timeout=CONNECT_SECONDS)
    except (OSError, ValueError) as error:
        raise _unreachable(address, _first_line(error)) from None
    with client:
        try:
            yield DaskRunner(client, address)
        finally:
            process_cache.clear()
            with suppress(Exception):  # the flow run is over, whatever happened to the cluster
                client.run(process_cache.clear)


def check_cluster(address: str) -> None:
    """Raise a ValueError unless everything that a cluster needs is set, a ConnectionError if it does not answer."""
    if not get_current_settings().api.url:
        raise ValueError(
            f"DQN_CLUSTER is {address}, but PREFECT_API_URL is not set: name a Prefect server that its workers reach"
        )
    if importlib.util.find_spec("prefect_dask") is None:
        raise ValueError(
            f"DQN_CLUSTER is {address}, but prefect-dask is not installed; install this project with [cluster]"
        )
    url = urlsplit(address)
    try:
        socket.create_connection((url.hostname or "", url.port or 0), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise _unreachable(address, _first_line(error)) from None


def arguments_by_shard(arguments: Sequence[Any]) -> list[tuple[Any, ...]]:
    """The arguments of each shard's task run: lists are taken apart, all other arguments are repeated."""
    (count,) = {len(argument) for argument in arguments if isinstance(argument, list)}
    columns = [argument if isinstance(argument, list) else [argument] * count for argument in arguments]
    return list(zip(*columns, strict=True))


class LocalRunner:
    """This process: one task after the other, and beside them what was started."""

    def __init__(self) -> None:
        self._started: list[PrefectFuture[UnitReference]] = []  # and not waited for yet

    def resolve(self, config: TrainConfig) -> TrainConfig:
        """`config` with every `auto` decided for this machine."""
        return resolve(config)

    def begin(self, run: StoredRun) -> None:
        """Set torch up for the run."""
        prepare(run.config)

    def map(self, task: Task[..., UnitReference], *arguments: Any) -> list[UnitReference]:
        """Run the task for one shard after the other."""
        return [task(*each) for each in arguments_by_shard(arguments)]

    def start(self, task: Task[..., UnitReference], *arguments: Any) -> Callable[[], list[UnitReference]]:
        """Run the task for one shard after the other in the one thread of the flow's task runner."""
        futures = [task.submit(*each) for each in arguments_by_shard(arguments)]
        self._started += futures

        def results() -> list[UnitReference]:
            found = [future.result() for future in futures]
            self._started = [future for future in self._started if future not in futures]
            return found

        return results

    def stop(self) -> None:
        """Stop what was started and is not done, and wait until it has stopped."""
        waiting = [future for future in self._started if not future.state.is_final()]
        if waiting:
            log = logging.getLogger("prefect.task_runs")
            level = log.level
            log.setLevel(logging.CRITICAL)  # that these tasks fail is no news
            try:
                with stopped():
                    for future in waiting:
                        future.wait()
            finally:
                log.setLevel(level)

    def run(self, task: Task[..., UnitReference], *arguments: Any) -> UnitReference:
        """Run the task."""
        return task(*arguments)


class DaskRunner:
    """The workers of a Dask cluster that offer the resource `collector` or `optimizer`.

    Dask gives the tasks of a worker that dies to other workers, which run them from the start with the same result.
    This class adds that a shard is played where its games are open, unless that worker is gone or far behind.
    """

    def __init__(self, client: Any, address: str) -> None:
        self._client = client
        self._address = address
        self._near: dict[int, Any] = {}  # by shard: a value that lies with the worker which has the shard's games
        self._missing_since: float | None = None
        self._await_workers(COLLECTOR)
        self._optimizes = bool(self._workers(OPTIMIZER))

    def resolve(self, config: TrainConfig) -> TrainConfig:
        """`config` with every `auto` decided for the worker that optimizes, or for this machine without one."""
        if not self._optimizes:
            return resolve(config)
        future = self._client.submit(resolve, config, resources={OPTIMIZER: 1}, pure=False)
        resolved: TrainConfig = self._results([future], OPTIMIZER)[0]
        return resolved

    def begin(self, run: StoredRun) -> None:
        """Check that every worker finds the run and has the same versions.

        Raises:
            ConnectionError: a worker does not.
        """
        self._near.clear()
        if not self._optimizes:
            prepare(run.config)
        workers = sorted(self._workers(COLLECTOR) | self._workers(OPTIMIZER))
        checks = [self._client.submit(check_run, run.run_id, workers=[worker], pure=False) for worker in workers]
        for worker, check in zip(workers, checks, strict=True):
            _check_worker(worker, check, run.run_id)
        where = "on a worker" if self._optimizes else f"in this process, because no worker offers {OPTIMIZER}"
        collectors = len(self._workers(COLLECTOR))
        get_run_logger().info("%d shards on %d workers; the network is trained %s", run.shards, collectors, where)

    def map(self, task: Task[..., UnitReference], *arguments: Any) -> list[UnitReference]:
        """Run the task for all shards at the same time, on workers that offer `collector`."""
        return self.start(task, *arguments)()

    def start(self, task: Task[..., UnitReference], *arguments: Any) -> Callable[[], list[UnitReference]]:
        """Submit the task for all shards. The returned function waits for the results."""
        calls = arguments_by_shard(arguments)
        futures = [self._submit(task, COLLECTOR, call, self._near.get(shard)) for shard, call in enumerate(calls)]
        cycle = task_cycle(get_call_parameters(task.fn, calls[0], {}))

        def on_progress(done: int) -> None:
            report(str(task.name), cycle, done, len(calls))

        def results() -> list[UnitReference]:
            states = self._results(futures, COLLECTOR, on_progress)
            self._remember_workers(futures)
            return [_linked(state) for state in states]

        return results

    def run(self, task: Task[..., UnitReference], *arguments: Any) -> UnitReference:
        """Run the task on a worker that offers `optimizer`, or in this process if none does."""
        if not self._optimizes:
            return task(*arguments)
        (state,) = self._results([self._submit(task, OPTIMIZER, arguments)], OPTIMIZER)
        return _linked(state)

    def _submit(self, task: Task[..., UnitReference], resource: str, arguments: Sequence[Any], near: Any = None) -> Any:
        return self._client.submit(
            task.with_options(retries=2, retry_delay_seconds=POLL_SECONDS),
            parameters=get_call_parameters(task.fn, tuple(arguments), {}),
            wait_for=[near] if near is not None else None,
            return_type="state",
            resources={resource: 1},
            fifo_timeout="0 ms",  # otherwise tasks that are submitted soon after each other run in any order
            pure=False,
        )

    def _remember_workers(self, futures: Sequence[Any]) -> None:
        """Leave a value with the worker of each shard, so that the shard's next task runs there."""
        holders = self._client.who_has(futures)
        for shard, future in enumerate(futures):
            if holder := holders.get(future.key):
                # This is no restriction: Dask prefers a worker that has the values which a task needs, and computes
                # lost values again on any worker.
                self._near[shard] = self._client.submit(
                    int, shard, workers=list(holder)[:1], allow_other_workers=True, pure=False
                )

    def _results(
        self, futures: Sequence[Any], resource: str, on_progress: Callable[[int], None] = lambda done: None
    ) -> list[Any]:
        """The results of the futures, as soon as all are done.

        Raises:
            ConnectionError: no worker is left to run them.
        """
        import distributed
        from distributed.comm.core import CommClosedError

        wait: Any = distributed.wait
        try:
            while waiting := [future for future in futures if not future.done()]:
                on_progress(len(futures) - len(waiting))
                with suppress(distributed.TimeoutError):
                    wait(waiting, timeout=POLL_SECONDS, return_when="FIRST_COMPLETED")
                self._check(resource)
            return [future.result() for future in futures]
        except distributed.KilledWorker as error:
            raise ConnectionError(f"the workers that ran a task died; Dask gave it up: {_first_line(error)}") from None
        except (CancelledError, CommClosedError):
            raise _unreachable(self._address, "the connection was lost") from None

    def _await_workers(self, resource: str) -> None:
        while not self._workers(resource):
            self._check(resource)
            time.sleep(min(POLL_SECONDS, WORKER_SECONDS))

    def _check(self, resource: str) -> None:
        """Raise a ConnectionError if no worker has offered `resource` for too long."""
        if self._workers(resource):
            self._missing_since = None
            return
        self._missing_since = self._missing_since or time.monotonic()
        if time.monotonic() - self._missing_since > WORKER_SECONDS:
            here = " --host 127.0.0.1" if "//127.0.0.1:" in self._address else ""
            raise ConnectionError(
                f"no worker of the cluster {self._address} offers the resource {resource}; start one: "
                f"dask worker {self._address}{here} --nthreads 1 --resources {resource}=1"
            )

    def _workers(self, resource: str) -> set[str]:
        """The workers that offer a resource."""
        found = self._client.scheduler_info()["workers"]
        return {address for address, worker in found.items() if worker["resources"].get(resource)}


def check_run(run_id: str) -> dict[str, str]:
    """On a worker: open the run, and return the versions that the worker has.

    Raises:
        StorageError: the worker does not find the run.
    """
    open_run(run_id).newest_checkpoint()
    return versions()


def _unreachable(address: str, reason: str) -> ConnectionError:
    return ConnectionError(
        f"the Dask scheduler {address} does not answer ({reason}); start it with `dask scheduler`, or unset DQN_CLUSTER"
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _linked(state: State[UnitReference]) -> UnitReference:
    """The result of a task that ran on a worker. Prefect draws an edge to each task that it is passed to."""
    result: Any = state.result()
    link_state_to_task_run_result(state, result)
    reference: UnitReference = result
    return reference


def _check_worker(worker: str, check: Any, run_id: str) -> None:
    """Raise a ConnectionError if `check`, the future of `check_run` on the worker, failed or found other versions."""
    try:
        error = check.exception(timeout=CHECK_SECONDS)
    except TimeoutError:
        error = TimeoutError(f"it did not answer within {CHECK_SECONDS} seconds")
    if error:
        raise ConnectionError(
            f"worker {worker} cannot work for run {run_id} ({_first_line(error)}); it needs this version "
            "of the project, and the flow's DQN_HOME, or its MLFLOW_TRACKING_URI and DQN_REPLAY"
        )
    found, own = check.result(), versions()
    differing = [f"{name} {found.get(name)} and not {own[name]}" for name in own if found.get(name) != own[name]]
    if differing:
        raise ConnectionError(f"worker {worker} would compute something else: it has {', '.join(differing)}")
