"""The networks in training with their optimizer, and how their tensors are saved and restored."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dqn.config import TrainConfig
from dqn.learning.fused_step import FusedStep, gradient_scale
from dqn.learning.networks import QNetwork, q_loss
from dqn.learning.optimizers import make_optimizer

_COMPILER = "inductor"  # of torch.compile's backends


class Learner:
    """A network with its optimizer. The weights are float32; a copy in `precision` does the arithmetic.

    With `ema_decay` the network is an average over the weights of one that is trained in its stead: it
    estimates, and is what others are given. Source: Polyak and Juditsky 1992 (averages of weights); Lillicrap and
    others 2015 (an exponential one in place of a target network).
    """

    def __init__(self, config: TrainConfig, actions: int, device: torch.device) -> None:
        self.config = config
        self.device = device
        self.network = QNetwork(config, actions).to(device)
        self._trained = copy.deepcopy(self.network) if config.ema_decay else self.network
        self.optimizer = make_optimizer(config, self._trained.parameters())
        self._worker = self._in_precision(self._trained)
        self._player = self._in_precision(self.network) if config.ema_decay else self._worker
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
        self._fused_step = FusedStep(self.optimizer, self._working_weights, max(1, config.threads)) if on_cpu else None

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
        limit = self.config.max_grad_norm
        if self._fused_step is not None:
            self._fused_step(gradients, gradient_scale(gradients, limit))
        else:
            for weight, gradient in zip(self.weights, gradients, strict=True):
                weight.grad = gradient.to(weight.dtype)
            if limit:
                nn.utils.clip_grad_norm_(self.weights, limit, foreach=True)
            self.optimizer.step()
            self._refresh_worker()
        if self.config.ema_decay:
            with torch.no_grad():
                torch._foreach_lerp_(self._average, self.weights, 1 - self.config.ema_decay)

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


TRAINED = "trained"


def learner_tensors(learner: Learner) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights and the optimizer state of `learner` by name, on the CPU.

    On a CPU most are its own, not copies: they change when it is trained again.
    """
    weights = {name: _plain(tensor) for name, tensor in learner.network.state_dict().items()}
    state = learner.optimizer.state_dict()["state"]
    optimizer = {f"{index}.{name}": _plain(tensor) for index, entry in state.items() for name, tensor in entry.items()}
    if learner.config.ema_decay:  # else the network's own weights are those in training
        optimizer |= {f"{index}.{TRAINED}": _plain(tensor) for index, tensor in enumerate(learner.weights)}
    return weights, optimizer


def fill_learner(learner: Learner, weights: dict[str, Tensor], optimizer: dict[str, Tensor]) -> None:
    """Make `learner` the one that these tensors are of, by `learner_tensors`; they are copied.

    Raises:
        ValueError: the weights are not those of its network.
    """
    try:
        learner.network.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"the checkpoint's weights do not fit its configuration: {error}") from None
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in optimizer.items():
        index, name = key.split(".", 1)
        if name == TRAINED:
            with torch.no_grad():
                learner.weights[int(index)].copy_(tensor)
            continue
        # A copy, in the order of memory that the optimizer itself would use.
        like = learner.weights[int(index)] if tensor.ndim else tensor
        state.setdefault(int(index), {})[name] = torch.empty_like(like).copy_(tensor)
    groups = learner.optimizer.state_dict()["param_groups"]
    learner.optimizer.load_state_dict({"state": state, "param_groups": groups})
    learner.refresh()


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous()
