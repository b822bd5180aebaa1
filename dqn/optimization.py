"""One optimization run: train the network towards the targets of the sweep."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dqn.config import TrainConfig
from dqn.networks import QNetwork, q_loss
from dqn.one_pass import OnePassStep, gradient_scale
from dqn.optimizers import make_optimizer
from dqn.randomness import generator, torch_generator
from dqn.replay import ReplayMemory, balanced_batches, shuffled_batches

LOSS_WINDOW = 100
_COMPILER = "inductor"  # of torch.compile's backends
_GPU_LOOKS = 10  # batches from one look at the losses to the next: each look waits for the GPU


@dataclass(frozen=True)
class OptimizationResult:
    """What an optimization run did."""

    losses: np.ndarray  # (batches,) float32
    epochs: float
    states_trained: int


class Learner:
    """A network with its optimizer. The weights are float32; a copy in `precision` does the arithmetic.

    With `average_decay` the network is an average over the weights of one that is trained in its stead: it
    estimates, and is what others are given. Source: Polyak and Juditsky 1992 (averages of weights); Lillicrap and
    others 2015 (an exponential one in place of a target network).
    """

    def __init__(self, config: TrainConfig, actions: int, device: torch.device) -> None:
        self.config = config
        self.device = device
        self.network = QNetwork(config, actions).to(device)
        self._trained = copy.deepcopy(self.network) if config.average_decay else self.network
        self.optimizer = make_optimizer(config, self._trained.parameters())
        self._worker = self._in_precision(self._trained)
        self._player = self._in_precision(self.network) if config.average_decay else self._worker
        self.weights: list[Tensor] = list(self._trained.parameters())  # in training
        self._working_weights: list[Tensor] = list(self._worker.parameters())
        self._average: list[Tensor] = list(self.network.parameters())
        self._loss: Callable[..., Tensor] = self._batch_loss
        if config.compiled == "yes":
            # float32 is to be multiplied in float32, so the advice to use TensorFloat32 instead is of no use.
            warnings.filterwarnings("ignore", "TensorFloat32 tensor cores for float32 .* not enabled", UserWarning)
            # Its choice among equivalent kernels would be by the clock, and with it the order of sums.
            options: Any = {"deterministic": True} if _COMPILER == "inductor" else None
            self._loss = torch.compile(self._batch_loss, backend=_COMPILER, dynamic=False, options=options)
        on_cpu = device.type == "cpu"
        self._one_pass_step = (
            OnePassStep(self.optimizer, self._working_weights, max(1, config.threads)) if on_cpu else None
        )

    @torch.no_grad()
    def estimate(self, states: np.ndarray) -> np.ndarray:
        """Q-values (N, A) float32 of states (N, 105, 80, C) uint8."""
        estimates: Tensor = self._player(torch.from_numpy(states).to(self.device))
        return estimates.cpu().numpy()

    def train_batch(
        self, states: Tensor, targets: Tensor, actions: Tensor, dropout_draws: torch.Generator | None = None
    ) -> Tensor:
        """One optimizer step on a batch; returns its loss, still on the device. Without draws nothing is dropped."""
        loss = self._loss(states, targets, actions, dropout_draws)
        gradients = torch.autograd.grad(loss, self._working_weights)
        self._step(gradients)
        return loss.detach()

    def _batch_loss(
        self, states: Tensor, targets: Tensor, actions: Tensor, dropout_draws: torch.Generator | None
    ) -> Tensor:
        return q_loss(self._worker(states, dropout_draws), targets, actions, self.config.loss)

    def _step(self, gradients: Sequence[Tensor]) -> None:
        limit = self.config.gradient_norm_limit
        if self._one_pass_step is not None:
            self._one_pass_step(gradients, gradient_scale(gradients, limit))
        else:
            for weight, gradient in zip(self.weights, gradients, strict=True):
                weight.grad = gradient.to(weight.dtype)
            if limit:
                nn.utils.clip_grad_norm_(self.weights, limit, foreach=True)
            self.optimizer.step()
            self._refresh_worker()
        if self.config.average_decay:
            with torch.no_grad():
                torch._foreach_lerp_(self._average, self.weights, 1 - self.config.average_decay)

    def _in_precision(self, network: QNetwork) -> QNetwork:
        return network.in_bfloat16() if self.config.precision == "bfloat16" else network

    @torch.no_grad()
    def _refresh_worker(self) -> None:
        if self._worker is not self._trained:
            torch._foreach_copy_(self._working_weights, self.weights)

    @torch.no_grad()
    def refresh(self) -> None:
        """Carry all weights over to the copies that do the arithmetic, for those that estimate wait for this."""
        self._refresh_worker()
        if self._player is not self._worker:
            torch._foreach_copy_(list(self._player.parameters()), self._average)

    def set_learning_rate(self, learning_rate: float) -> None:
        """The step size of the optimizer from now on."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate


def bold_driver(learning_rate: float, before: float, now: float) -> float:
    """The next learning rate, by the mean losses of two epochs: a little more after progress, half after none.

    Losses compare only within an optimization run, where the targets stay.
    Source: Vogl and others 1988 (the growth of 1.05), Battiti 1989 (the name, and the half).
    """
    return learning_rate * (1.05 if now < before else 0.5)


def optimize(
    learner: Learner,
    memory: ReplayMemory,
    cycle: int,
    scheduled: dict[str, float],
    on_batch: Callable[[int, int], None] = lambda done, batches: None,
    part: slice | None = None,
) -> OptimizationResult:
    """Train `learner` on `memory` for the cycle's epochs, or until the loss is low enough.

    Stops after max_epochs; past min_epochs also as soon as the mean loss of the last 100 batches is
    below the loss limit. As in the tutorial, the history starts as zeros, and the least number of
    batches is that of min_epochs and two more.

    Args:
        cycle: part of the key of every draw.
        scheduled: values of learning_rate, max_epochs and loss_limit.
        on_batch: told the batches done and at most to do.
        part: of every batch, where other processes take the rest and the learner averages; see dqn.data_parallel.
    """
    config = learner.config
    batch_size = min(config.batch_size, len(memory))
    memory = memory.on(learner.device)
    batches = _batches(config, memory, batch_size, cycle)
    epoch = len(memory) / batch_size
    least, most = int(epoch * config.min_epochs), max(1, int(epoch * scheduled["max_epochs"]))
    learning_rate, per_epoch = scheduled["learning_rate"], max(1, int(epoch))
    learner.set_learning_rate(learning_rate)
    losses: list[Tensor] = []
    looks, limit = _GPU_LOOKS if learner.device.type == "cuda" else 1, scheduled["loss_limit"]
    while len(losses) < most:
        key = (cycle, len(losses)) if part is None else (cycle, len(losses), part.start)
        dropout = torch_generator(config.seed, "dropout", *key) if config.dropout else None
        chosen = next(batches) if part is None else next(batches)[part]
        losses.append(learner.train_batch(*memory.batch(chosen, learner.device), dropout))
        if limit > 0 and len(losses) > least + 1 and len(losses) % looks == 0:
            recent = torch.stack(losses[-LOSS_WINDOW:]).sum().item() / LOSS_WINDOW
            if recent < limit:
                break
        if config.adapt_learning_rate and len(losses) >= 2 * per_epoch and len(losses) % per_epoch == 0:
            before, now = torch.stack(losses[-2 * per_epoch :]).reshape(2, per_epoch).mean(1).tolist()
            learning_rate = bold_driver(learning_rate, before, now)
            learner.set_learning_rate(learning_rate)
        on_batch(len(losses), most)
    learner.refresh()
    trained = len(losses) * batch_size
    return OptimizationResult(torch.stack(losses).cpu().numpy().astype(np.float32), trained / len(memory), trained)


def _batches(config: TrainConfig, memory: ReplayMemory, batch_size: int, cycle: int) -> Iterator[np.ndarray]:
    """Batches of indices of the memory without end, as the configuration wants them drawn."""
    draws = generator(config.seed, "batches", cycle)
    if config.balanced_sampling:
        return balanced_batches(memory.estimation_errors, config.error_threshold, batch_size, draws)
    return shuffled_batches(len(memory), batch_size, draws)
