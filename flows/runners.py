"""Where tasks run: in this process, or on the workers of the Dask cluster that DQN_CLUSTER names."""

from __future__ import annotations

import importlib.util
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from typing import Any, Protocol
from urllib.parse import urlsplit

from prefect import Task, get_run_logger
from prefect.settings import get_current_settings

from dqn.config import TrainConfig
from dqn.hardware import prepare, resolve
from storage.provenance import versions
from storage.runs import StoredRun, open_run
from storage.settings import Settings
from tasks import process_cache
from tasks.progress import report
from tasks.unit_reference import UnitReference

COLLECTOR, OPTIMIZER = "collector", "optimizer"  # resources that workers offer
CONNECT_SECONDS = 10
WORKER_SECONDS = 60  # that nobody may offer a resource which is waited for
LOOK_SECONDS = 120  # for a worker to import all this and to find the run
POLL_SECONDS = 2


class Workplace(Protocol):
    """Where a flow run's tasks run."""

    def resolve(self, config: TrainConfig) -> TrainConfig:
        """`config` with every `auto` decided for the machine that optimizes."""

    def begin(self, run: StoredRun) -> None:
        """Get ready for the tasks of `run`."""

    def each_shard(self, task: Task[..., UnitReference], run: StoredRun, cycle: int) -> None:
        """Do a task of a cycle for every shard of its lanes."""

    def once(self, task: Task[..., UnitReference], run: StoredRun, cycle: int) -> UnitReference:
        """Do a task of a cycle that there is one of, where the network is trained."""


@contextmanager
def workplace() -> Iterator[Workplace]:
    """Where the settings say.

    Raises:
        ValueError: DQN_CLUSTER is set, but something that it needs is not.
        ConnectionError: the cluster's scheduler does not answer, or no worker offers to play.
    """
    address = Settings.from_environment().cluster
    if not address:
        try:
            yield _Here()
        finally:
            process_cache.release()
        return
    check_cluster(address)
    from prefect_dask.client import PrefectDaskClient

    connect: Any = PrefectDaskClient
    try:
        client = connect(address, timeout=CONNECT_SECONDS)
    except (OSError, ValueError) as error:
        raise _away(address, error) from None
    with client:
        try:
            yield _Cluster(client, address)
        finally:
            process_cache.release()
            with suppress(Exception):  # whatever became of the cluster, the flow run is over
                client.run(process_cache.release)


def check_cluster(address: str) -> None:
    """Raise a ValueError unless all is set that a cluster needs, and a ConnectionError if nobody listens there."""
    if not get_current_settings().api.url:
        raise ValueError(
            f"DQN_CLUSTER is {address}, but PREFECT_API_URL is not set: name a Prefect server that its workers reach"
        )
    if importlib.util.find_spec("prefect_dask") is None:
        raise ValueError(
            f"DQN_CLUSTER is {address}, but prefect-dask is not installed; install this project with [cluster]"
        )
    place = urlsplit(address)
    try:
        socket.create_connection((place.hostname or "", place.port or 0), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise _away(address, error) from None


class _Here:
    """This process, one task after the other."""

    def resolve(self, config: TrainConfig) -> TrainConfig:
        return resolve(config)

    def begin(self, run: StoredRun) -> None:
        prepare(run.config)

    def each_shard(self, task: Task[..., UnitReference], run: StoredRun, cycle: int) -> None:
        for shard in range(run.shards):
            task(run.run_id, cycle, shard)

    def once(self, task: Task[..., UnitReference], run: StoredRun, cycle: int) -> UnitReference:
        return task(run.run_id, cycle)


class _Cluster:
    """The workers of a Dask cluster; who offers no resource gets nothing to do.

    What Dask does by itself: a worker that dies loses its tasks to others, which do them from the start, with the
    same result. What is added: a shard goes where its games are open, unless that worker is gone or far behind.
    """

    def __init__(self, client: Any, address: str) -> None:
        self._client = client
        self._address = address
        self._near: dict[int, Any] = {}  # of each shard: a value that lies with the worker that has its games
        self._missing_since: float | None = None
        self._await_workers(COLLECTOR)
        self._optimizes = bool(self._workers(OPTIMIZER))

    def resolve(self, config: TrainConfig) -> TrainConfig:
        if not self._optimizes:
            return resolve(config)
        found = self._client.submit(resolve, config, resources={OPTIMIZER: 1}, pure=False)
        resolved: TrainConfig = self._results([found], OPTIMIZER)[0]
        return resolved

    def begin(self, run: StoredRun) -> None:
        self._near.clear()
        if not self._optimizes:
            prepare(run.config)
        workers = self._workers(COLLECTOR) | self._workers(OPTIMIZER)
        own, looks = versions(), {}
        for worker in sorted(workers):
            looks[worker] = self._client.submit(look, run.run_id, workers=[worker], pure=False)
        for worker, future in looks.items():
            try:
                error = future.exception(timeout=LOOK_SECONDS)
            except TimeoutError:
                error = TimeoutError(f"it did not say so within {LOOK_SECONDS} seconds")
            if error:
                raise ConnectionError(
                    f"worker {worker} cannot work for run {run.run_id} ({_first_line(error)}); it needs this version "
                    "of the project, and the flow's DQN_HOME, or its MLFLOW_TRACKING_URI and DQN_REPLAY"
                )
            found = future.result()
            differing = [
                f"{name} {found.get(name)} and not {own[name]}" for name in own if found.get(name) != own[name]
            ]
            if differing:
                raise ConnectionError(f"worker {worker} would compute something else: it has {', '.join(differing)}")
        place = "on a worker" if self._optimizes else f"in this process, for no worker offers {OPTIMIZER}"
        players = len(self._workers(COLLECTOR))
        get_run_logger().info("%d shards on %d workers; the network is trained %s", run.shards, players, place)

    def each_shard(self, task: Task[..., UnitReference], run: StoredRun, cycle: int) -> None:
        futures = [
            self._submit(task, COLLECTOR, (run.run_id, cycle, shard), self._near.get(shard))
            for shard in range(run.shards)
        ]
        states = self._results(futures, COLLECTOR, lambda done: report(str(task.name), cycle, done, run.shards))
        holders = self._client.who_has(futures)
        for shard, (future, state) in enumerate(zip(futures, states, strict=True)):
            state.result()
            if holder := holders.get(future.key):
                # Not a restriction: Dask looks for the values that a task needs, and makes lost ones anew anywhere.
                self._near[shard] = self._client.submit(
                    int, shard, workers=list(holder)[:1], allow_other_workers=True, pure=False
                )

    def once(self, task: Task[..., UnitReference], run: StoredRun, cycle: int) -> UnitReference:
        if not self._optimizes:
            return task(run.run_id, cycle)
        future = self._submit(task, OPTIMIZER, (run.run_id, cycle), None)
        made: UnitReference = self._results([future], OPTIMIZER)[0].result()
        return made

    def _submit(self, task: Task[..., UnitReference], resource: str, arguments: tuple[Any, ...], near: Any) -> Any:
        parameters = dict(zip(("run_id", "cycle", "shard"), arguments, strict=False))
        return self._client.submit(
            task.with_options(retries=2, retry_delay_seconds=POLL_SECONDS),
            parameters=parameters,
            wait_for=[near] if near is not None else None,
            return_type="state",
            resources={resource: 1},
            pure=False,
        )

    def _results(
        self, futures: Sequence[Any], resource: str, tell: Callable[[int], None] = lambda done: None
    ) -> list[Any]:
        """What came of the futures, as soon as all are done.

        Raises:
            ConnectionError: nobody does them any more.
        """
        import distributed
        from distributed.comm.core import CommClosedError

        wait: Any = distributed.wait
        try:
            while waiting := [future for future in futures if not future.done()]:
                tell(len(futures) - len(waiting))
                with suppress(distributed.TimeoutError):
                    wait(waiting, timeout=POLL_SECONDS, return_when="FIRST_COMPLETED")
                self._check(resource)
            return [future.result() for future in futures]
        except distributed.KilledWorker as error:
            raise ConnectionError(f"a task was given up: {_first_line(error)}") from None
        except (CancelledError, CommClosedError) as error:
            raise _away(self._address, error) from None

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
            raise ConnectionError(
                f"no worker of the cluster {self._address} offers the resource {resource}; start one: "
                f"dask worker {self._address} --nthreads 1 --resources {resource}=1"
            )

    def _workers(self, resource: str) -> set[str]:
        """The workers that offer a resource."""
        found = self._client.scheduler_info()["workers"]
        return {address for address, worker in found.items() if worker["resources"].get(resource)}


def look(run_id: str) -> dict[str, str]:
    """On a worker: that it finds the run, and with which versions it would work."""
    open_run(run_id).newest_checkpoint()
    return versions()


def _away(address: str, error: BaseException) -> ConnectionError:
    return ConnectionError(
        f"the Dask scheduler {address} does not answer ({_first_line(error)}); start it with `dask scheduler`, "
        "or unset DQN_CLUSTER"
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
