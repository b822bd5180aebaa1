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

LOSS_WINDOW = 100
_GPU_LOOKS = 10  # batches from one look at the losses to the next: each look waits for the GPU


@dataclass(frozen=True)
class OptimizationResult:
    """What an optimization run did."""

    losses: np.ndarray  # (batches,) float32
    epochs: float
    states_trained: int


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
        part: of every batch, where other processes take the rest; see dqn.learning.data_parallel.
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
