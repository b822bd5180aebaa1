"""Effect of mixed precision on learning: draws loss curves on fixed data into docs/precision.png."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from benchmarks.report import DOCS, Row
from benchmarks.speed import LEARNING_RATE, PlainLoop
from dqn.config import TrainConfig, make_config
from dqn.hardware import prepare, resolve
from dqn.learning.learner import Learner
from dqn.plots.figures import new_figure

STATES, STEPS, LAST = 1_024, 120, 30
PICTURE = DOCS / "precision.png"


def fixed_data(config: TrainConfig, actions: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Data that needs no game: a square at a random position in each state.

    Returns states (N, 105, 80, C), targets (N, 4), which are the position of the square, and actions (N,).
    """
    draws = np.random.default_rng(0)
    states = np.zeros((STATES, 105, 80, config.state_channels), np.uint8)
    rows, columns = draws.integers(0, 95, STATES), draws.integers(0, 70, STATES)
    for state, row, column in zip(states, rows, columns, strict=True):
        state[row : row + 10, column : column + 10] = 200
    position = np.stack([rows / 95, columns / 70, 1 - rows / 95, 1 - columns / 70], axis=1)
    taken = draws.integers(actions, size=STATES)
    return torch.from_numpy(states), torch.from_numpy(position.astype(np.float32)), torch.from_numpy(taken)


def losses(learner: Any, config: TrainConfig) -> np.ndarray:
    """The loss (STEPS,) of each batch of a training on the fixed data; every learner gets the same batches."""
    data = [each.to(config.device) for each in fixed_data(config, 4)]
    draws, made = np.random.default_rng(1), []
    for _ in range(STEPS):
        chosen = torch.from_numpy(draws.choice(STATES, config.batch_size, replace=False)).to(config.device)
        made.append(learner.train_batch(*(each[chosen] for each in data)))
    return np.array([float(loss) for loss in made])


def bench_precision(preset: str) -> dict[str, list[float]]:
    """Losses of a plain float32 loop, and of the learner in float32 and in the precision that this machine selects."""
    config = resolve(make_config(preset))
    device = prepare(config)
    found = {"plain float32 loop": losses(PlainLoop(config, device), config).tolist()}
    for precision in dict.fromkeys(("float32", config.precision)):
        learner = Learner(config.model_copy(update={"precision": precision}), 4, device)
        learner.set_learning_rate(LEARNING_RATE)
        found[precision] = losses(learner, config).tolist()
    return found


def draw(results: dict[str, Any]) -> None:
    """Draw the curves of the presets side by side."""
    curves: dict[str, dict[str, list[float]]] = results["losses"]
    figure = new_figure(10, 4.2, "Loss of a training on fixed data, by precision")
    for axes, (preset, found) in zip(figure.subplots(1, len(curves)), curves.items(), strict=True):
        for style, (name, values) in zip((":", "-", "--"), found.items(), strict=False):
            axes.plot(values, style, lw=1.6, label=name)
        axes.set_title(preset, fontsize=10)
        axes.set_yscale("log")
        axes.set_xlabel("batches")
        axes.set_ylabel("loss [reward²]")
        axes.legend(frameon=False, fontsize=9)
    figure.savefig(PICTURE, dpi=100)


def measure(results: dict[str, Any]) -> None:
    """Measure the losses, and store them in `results`."""
    results["losses"] = {preset: bench_precision(preset) for preset in ("fast", "tutorial")}


def rows(results: dict[str, Any]) -> Iterator[Row]:
    """A row for the losses of each preset in `results`."""
    for preset, found in results["losses"].items():
        final = {name: float(np.mean(values[-LAST:])) for name, values in found.items()}
        spread = float(np.std(found["plain float32 loop"][-LAST:]))
        name = list(final)[-1]
        yield Row(
            f"loss after {STEPS} batches of fixed data, preset `{preset}`, {name}",
            f"{final[name]:.4f}",
            f"a plain float32 loop: {final['plain float32 loop']:.4f}, standard deviation of a batch {spread:.4f}",
            "within noise",
        )


if __name__ == "__main__":
    measured: dict[str, Any] = {}
    measure(measured)
    for row in rows(measured):
        print(row)
