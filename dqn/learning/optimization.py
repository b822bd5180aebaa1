"""One optimization run: train the network towards the targets of the sweep."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dqn.config import TrainConfig
from dqn.learning.learner import Learner
from dqn.learning.replay import ReplayMemory, balanced_batches, shuffled_batches
from dqn.randomness import generator, torch_generator

LOSS_WINDOW = 100  # batches whose mean loss is compared with the loss limit
BATCHES_PER_LOSS_CHECK = 10  # on a GPU, because reading a loss synchronizes with it

Report = Callable[[int, int], None]  # is called with the number of batches done, and the most that will be done


@dataclass(frozen=True)
class OptimizationResult:
    """Losses and amount of work of an optimization run."""

    losses: np.ndarray  # (batches,) float32
    epochs: float
    states_trained: int  # states of all batches, repeated ones included


def train_on(
    learner: Learner,
    memory: ReplayMemory,
    cycle: int,
    scheduled: dict[str, float],
    on_batch: Report = lambda done, batches: None,
    part: slice | None = None,
) -> OptimizationResult:
    """Train `learner` on `memory` for max_epochs, or until the loss is below the limit.

    After min_epochs and two more batches, the run stops as soon as the mean loss of the last 100 batches is below the
    loss limit. As in the tutorial, batches before the first count with a loss of zero in that mean.

    Args:
        learner: trained in place; its copies are up to date on return.
        memory: states, targets and actions.
        cycle: number of the cycle, part of the key of every random draw.
        scheduled: values of learning_rate, max_epochs and loss_limit for this cycle.
        on_batch: called after each batch, except the one that ends the run early.
        part: rows of every batch that this process trains on; see dqn.learning.data_parallel.
    """
    config, limit = learner.config, scheduled["loss_limit"]
    batch_size = min(config.batch_size, len(memory))
    memory = memory.on(learner.device)
    batches = _batches(config, memory, batch_size, cycle)
    epoch = len(memory) / batch_size
    least, most = int(epoch * config.min_epochs), max(1, int(epoch * scheduled["max_epochs"]))
    check_every = BATCHES_PER_LOSS_CHECK if learner.device.type == "cuda" else 1
    learning_rate = scheduled["learning_rate"]
    learner.set_learning_rate(learning_rate)
    losses: list[Tensor] = []
    while len(losses) < most:
        dropout = _dropout_draws(config, cycle, len(losses), part)
        chosen = next(batches) if part is None else next(batches)[part]
        losses.append(learner.train_batch(*memory.batch(chosen, learner.device), dropout))
        done = len(losses)
        if limit > 0 and done > least + 1 and done % check_every == 0 and _recent_loss(losses) < limit:
            break
        if config.adapt_learning_rate:
            learning_rate = _adapted(learning_rate, losses, max(1, int(epoch)))
            learner.set_learning_rate(learning_rate)
        on_batch(done, most)
    learner.update_copies()
    trained = len(losses) * batch_size
    return OptimizationResult(torch.stack(losses).cpu().numpy().astype(np.float32), trained / len(memory), trained)


def _batches(config: TrainConfig, memory: ReplayMemory, batch_size: int, cycle: int) -> Iterator[np.ndarray]:
    """An endless iterator of batches of indices into the memory."""
    draws = generator(config.seed, "batches", cycle)
    if config.balanced_sampling:
        return balanced_batches(memory.estimation_errors, config.error_threshold, batch_size, draws)
    return shuffled_batches(len(memory), batch_size, draws)


def _dropout_draws(config: TrainConfig, cycle: int, batch: int, part: slice | None) -> torch.Generator | None:
    """The generator for dropout in one batch; None without dropout. Each process has its own draws for its part."""
    if not config.dropout:
        return None
    key = (cycle, batch) if part is None else (cycle, batch, part.start)
    return torch_generator(config.seed, "dropout", *key)


def _recent_loss(losses: list[Tensor]) -> float:
    """Mean loss of the last 100 batches, where batches before the first count as zeros."""
    return torch.stack(losses[-LOSS_WINDOW:]).sum().item() / LOSS_WINDOW


def _adapted(learning_rate: float, losses: list[Tensor], per_epoch: int) -> float:
    """The learning rate after a batch: adapted at the end of each epoch of `per_epoch` batches after the first."""
    if len(losses) < 2 * per_epoch or len(losses) % per_epoch:
        return learning_rate
    before, now = torch.stack(losses[-2 * per_epoch :]).reshape(2, per_epoch).mean(1).tolist()
    return bold_driver(learning_rate, before, now)


def bold_driver(learning_rate: float, before: float, now: float) -> float:
    """The next learning rate by the mean losses of two epochs: 1.05 times as high if the loss fell, otherwise half.

    Losses are comparable only within an optimization run, in which the targets do not change.
    Source: Vogl and others 1988 (the factor 1.05); Battiti 1989 (the name, and the factor 0.5).
    """
    return learning_rate * (1.05 if now < before else 0.5)
