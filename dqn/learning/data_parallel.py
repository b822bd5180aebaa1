"""Data-parallel optimization in several processes of one machine, each with its own GPU or a share of the cores.

Every process has the whole learner and computes its part of every batch. The gradients are averaged over all processes
before the step (torch.distributed: NCCL between GPUs, Gloo between CPUs), so that all processes take the same step.
"""

from __future__ import annotations

import datetime
import hashlib
import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed
import torch.multiprocessing
from torch import Tensor

from dqn.config import TrainConfig
from dqn.hardware import set_up_cuda
from dqn.learning.learner import Learner, LearnerState
from dqn.learning.optimization import OptimizationResult, Report, train_on
from dqn.learning.replay import ReplayMemory

# How long a process waits for the others, at the start and in every batch. It is long because one may still compile
# its loss, and needs not be short because the parent notices a process that has died, and ends the others.
WAIT_SECONDS = 1_800
_LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}


class _Result(NamedTuple):
    """What a process sends at the end of an optimization run."""

    weights_digest: str
    optimization: OptimizationResult
    trained: LearnerState | None  # only from the first process, because it is the same in all


class PartLearner(Learner):
    """A learner that computes its part of every batch, and takes the step of the whole batch."""

    def train_batch(
        self, states: Tensor, targets: Tensor, actions: Tensor, dropout_draws: torch.Generator | None = None
    ) -> Tensor:
        """As `Learner.train_batch`, given this process's part of a batch. Returns the loss of the whole batch."""
        loss, gradients = self.loss_and_gradients(states, targets, actions, dropout_draws)
        loss, gradients = averaged(loss, gradients, len(states))
        self.apply_gradients(gradients)
        return loss


def averaged(loss: Tensor, gradients: Sequence[Tensor], states: int) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Mean loss and gradients of all processes in float32, weighted by the number of states in each part.

    Args:
        loss: mean loss of this process's part, a scalar.
        gradients: gradients of that loss.
        states: number of states in the part.
    """
    parts = [gradient.reshape(-1).float() for gradient in (*gradients, loss, torch.ones_like(loss))]
    total = torch.cat(parts) * states
    torch.distributed.all_reduce(total)
    *means, loss, _ = torch.split(total / total[-1], [len(part) for part in parts])
    return loss[0], tuple(mean.view_as(like) for mean, like in zip(means, gradients, strict=True))


class Processes:
    """Processes that perform the optimization runs of one configuration. They end when the current process ends."""

    def __init__(self, config: TrainConfig, actions: int) -> None:
        """Start `optimizer_processes` processes for networks with that many actions.

        Raises:
            ValueError: the current process is a daemon, which cannot start processes.
        """
        if multiprocessing.current_process().daemon:
            raise ValueError(
                f"optimizer_processes is {config.optimizer_processes}, but a daemon process cannot start processes; "
                "start the Dask worker that optimizes with --no-nanny"
            )
        self._about = (config, actions)
        context = torch.multiprocessing.get_context("spawn")
        self._processes, self._connections = [], []
        self._folder = (
            tempfile.TemporaryDirectory()
        )  # of the file store; torch's alternative is a port that is open to all
        for rank in range(config.optimizer_processes):
            ours, theirs = context.Pipe()
            arguments = (rank, config, actions, str(Path(self._folder.name, "store")), theirs, os.getpid())
            process = context.Process(target=_serve, args=arguments, daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
            self._connections.append(ours)

    def are_for(self, config: TrainConfig, actions: int) -> bool:
        """Whether all processes are alive and were started with this configuration and number of actions."""
        return self._about == (config, actions) and all(process.is_alive() for process in self._processes)

    def train_on(
        self,
        learner: Learner,
        memory: ReplayMemory,
        cycle: int,
        scheduled: dict[str, float],
        on_batch: Report = lambda done, batches: None,
    ) -> OptimizationResult:
        """As `dqn.learning.optimization.train_on`, with each batch divided among the processes.

        The replay memory is in shared memory, once for all processes. After an error all processes are ended.

        Raises:
            ChildProcessError: a process failed or died.
            RuntimeError: the processes computed different weights.
        """
        state = _cloned(learner.state_dict())
        try:
            for connection in self._connections:
                with suppress(BrokenPipeError):  # the process is dead, which `_results` raises
                    connection.send((state, memory, cycle, scheduled))
            results = self._results(on_batch)
        except BaseException:
            self.close()
            raise
        digests = {result.weights_digest for result in results}
        if len(digests) > 1:
            self.close()
            raise RuntimeError(f"the {len(results)} optimizer processes computed different weights in cycle {cycle}")
        trained = results[0].trained
        assert trained is not None
        learner.load_state_dict(trained)
        return results[0].optimization

    def _results(self, on_batch: Report) -> list[_Result]:
        """The result of each process, in the order of ranks."""
        results: dict[int, _Result] = {}
        ranks: dict[Any, int] = {connection: rank for rank, connection in enumerate(self._connections)}
        while len(results) < len(self._processes):
            for connection in wait([each for each, rank in ranks.items() if rank not in results]):
                rank = ranks[connection]
                try:
                    kind, *what = self._connections[rank].recv()
                except (EOFError, ConnectionResetError):
                    self._processes[rank].join()
                    how = f"ended with status {self._processes[rank].exitcode}"
                    raise self._failure(rank, how) from None
                if kind == "failed":
                    raise self._failure(rank, f"failed: {what[0]}")
                if kind == "batch":
                    on_batch(*what)
                else:
                    results[rank] = what[0]
        return [results[rank] for rank in sorted(results)]

    def _failure(self, rank: int, how: str) -> ChildProcessError:
        return ChildProcessError(f"optimizer process {rank + 1} of {len(self._processes)} {how}")

    def close(self) -> None:
        """End the processes."""
        for process, connection in zip(self._processes, self._connections, strict=True):
            connection.close()
            process.kill()
        for process in self._processes:
            process.join()
        self._folder.cleanup()


def _serve(rank: int, config: TrainConfig, actions: int, store: str, connection: Connection, parent: int) -> None:
    """Main function of a process: perform optimization runs until the parent process has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C interrupts the parent, which ends this process
    try:
        _join_group(rank, config, store)
        device = torch.device("cuda", rank) if config.device == "cuda" else torch.device("cpu")
        share = config.model_copy(update={"threads": max(1, config.threads // config.optimizer_processes)})
        torch.set_num_threads(share.threads)
        learner = PartLearner(share, actions, device)
        while True:
            _train(rank, learner, connection, parent)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        sys.exit(1)  # the parent has ended
    except (RuntimeError, ValueError, OSError) as error:
        with suppress(BrokenPipeError):
            connection.send(("failed", str(error).strip().splitlines()[0]))
        sys.exit(1)


def _join_group(rank: int, config: TrainConfig, store: str) -> None:
    """Join the process group, on the loopback interface."""
    os.environ.update(_LOOPBACK)
    if config.device == "cuda":
        torch.cuda.set_device(rank)
        set_up_cuda()
    torch.distributed.init_process_group(
        "nccl" if config.device == "cuda" else "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=config.optimizer_processes,
        timeout=datetime.timedelta(seconds=WAIT_SECONDS),
    )


def _train(rank: int, learner: PartLearner, connection: Connection, parent: int) -> None:
    """Perform one optimization run that the parent sends. The first process reports progress and the trained state."""

    def on_batch(done: int, batches: int) -> None:
        if os.getppid() != parent:
            raise EOFError
        if rank == 0:
            connection.send(("batch", done, batches))

    state, memory, cycle, scheduled = connection.recv()
    learner.load_state_dict(state)
    part = slice(rank, None, learner.config.optimizer_processes)
    optimization = train_on(learner, memory, cycle, scheduled, on_batch, part)
    state = learner.state_dict()
    digest = hashlib.sha256()
    for tensor in state.weights.values():
        digest.update(tensor.numpy().tobytes())
    connection.send(("done", _Result(digest.hexdigest(), optimization, _cloned(state) if rank == 0 else None)))


def _cloned(state: LearnerState) -> LearnerState:
    """A copy that does not share memory with the learner."""
    weights, optimizer = ({name: tensor.clone() for name, tensor in each.items()} for each in state)
    return LearnerState(weights, optimizer)
