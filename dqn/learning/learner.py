"""The networks in training with their optimizer."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from dqn.config import TrainConfig
from dqn.learning.fused_step import FusedStep, gradient_scale
from dqn.learning.networks import QNetwork, make_network, q_loss
from dqn.learning.optimizers import make_optimizer

TRAINED = "trained"  # in names of the optimizer's tensors: a weight of the online network

_PART_STATES = 16  # fewer states in a part of a batch do not amortize the cost of its layers
_COMPILER = "inductor"  # backend of torch.compile


class LearnerState(NamedTuple):
    """The tensors of a `Learner` by name, on the CPU."""

    weights: dict[str, Tensor]  # of the average network
    optimizer: dict[str, Tensor]  # "<index of the weight>.<name>": the optimizer's state, or `trained`


class Learner:
    """The networks of a run, the optimizer, and one optimizer step at a time.

    There are up to four networks with the same layers:

    online_network    in training; its weights are float32, and the optimizer steps them
    compute_network   the copy of the online network in `precision` that computes losses and gradients
    average_network   exponential moving average of the online weights, float32; checkpoints and exports contain it
    acting_network    the copy of the average network in `precision` that estimates Q-values

    In float32 a copy is the network itself, and without `ema_decay` the average network is the online network.

    Source: Polyak and Juditsky 1992 (averages of weights); Lillicrap and others 2015 (an exponential moving average in
    place of a target network).
    """

    def __init__(self, config: TrainConfig, actions: int, device: torch.device) -> None:
        self.config = config
        self.device = device
        self.average_network = make_network(config, actions).to(device)
        self.online_network = copy.deepcopy(self.average_network) if config.ema_decay else self.average_network
        self.optimizer = make_optimizer(config, self.online_network.parameters())
        self.compute_network = self._in_precision(self.online_network)
        self.acting_network = self._in_precision(self.average_network) if config.ema_decay else self.compute_network
        self._online_weights: list[Tensor] = list(self.online_network.parameters())
        self._compute_weights: list[Tensor] = list(self.compute_network.parameters())
        self._average_weights: list[Tensor] = list(self.average_network.parameters())
        self._loss = _compiled(self._eager_loss) if config.compiled == "yes" else self._eager_loss
        on_cpu = device.type == "cpu"
        self._fused_step = FusedStep(self.optimizer, self._compute_weights, max(1, config.threads)) if on_cpu else None
        self._threads = ThreadPoolExecutor(max(1, config.threads), initializer=torch.set_num_threads, initargs=(1,))

    @torch.no_grad()
    def estimate(self, states: np.ndarray) -> np.ndarray:
        """Q-values (N, A) float32 of states (N, 105, 80, C) uint8, by the acting network."""
        estimates: Tensor = self.acting_network(torch.from_numpy(states).to(self.device))
        return estimates.cpu().numpy()

    def train_batch(
        self, states: Tensor, targets: Tensor, actions: Tensor, dropout_draws: torch.Generator | None = None
    ) -> Tensor:
        """Take one optimizer step on a batch.

        Args:
            states: (N, 105, 80, C) uint8, on the learner's device, as all tensors here.
            targets: (N, A) float32, Q-values after the sweep.
            actions: (N,) int64, actions taken.
            dropout_draws: generator for dropout; None disables dropout.

        Returns:
            The loss before the step, a scalar on the device.
        """
        loss, gradients = self.loss_and_gradients(states, targets, actions, dropout_draws)
        self.apply_gradients(gradients)
        return loss

    def loss_and_gradients(
        self, states: Tensor, targets: Tensor, actions: Tensor, dropout_draws: torch.Generator | None = None
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """The loss of a batch, without gradient, and its gradients by the weights of the compute network.

        On a CPU, threads compute parts of the batch, which is faster than if all threads shared every layer. The
        number of parts depends on the configuration alone, and parts are added in order. The arguments are those of
        `train_batch`.
        """
        parts = self._batch_parts(len(states), dropout_draws)
        if parts == 1:
            return self._gradients(states, targets, actions, dropout_draws)
        split = zip(*(tensor.tensor_split(parts) for tensor in (states, targets, actions)), strict=True)
        calls = [
            self._threads.submit(self._gradients, part, part_targets, part_actions, None, len(part) / len(states))
            for part, part_targets, part_actions in split
        ]
        (loss, gradients), *others = [call.result() for call in calls]
        total = [gradient.float() for gradient in gradients]
        for other, more in others:
            loss = loss + other
            torch._foreach_add_(total, list(more))
        return loss, total

    def _gradients(
        self,
        states: Tensor,
        targets: Tensor,
        actions: Tensor,
        dropout_draws: torch.Generator | None,
        share: float = 1.0,
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """The loss of a batch, or of the part of one that is `share` of it, and its gradients."""
        loss = self._loss(states, targets, actions, dropout_draws) * share
        return loss.detach(), torch.autograd.grad(loss, self._compute_weights)

    def _batch_parts(self, batch_size: int, dropout_draws: torch.Generator | None) -> int:
        """Number of parts of a batch that threads compute side by side."""
        if self.device.type != "cpu" or self.config.compiled == "yes" or dropout_draws is not None:
            return 1
        return max(1, min(self.config.threads, batch_size // _PART_STATES))

    def apply_gradients(self, gradients: Sequence[Tensor]) -> None:
        """Take one optimizer step with gradients by the weights of the compute network, and update the average.

        The gradients are scaled down to `max_grad_norm`.
        """
        limit = self.config.max_grad_norm
        if self._fused_step is not None:
            self._fused_step(gradients, gradient_scale(gradients, limit))
        else:
            for weight, gradient in zip(self._online_weights, gradients, strict=True):
                weight.grad = gradient.to(weight.dtype)
            if limit:
                nn.utils.clip_grad_norm_(self._online_weights, limit, foreach=True)
            self.optimizer.step()
            self._update_compute_network()
        if self.config.ema_decay:
            with torch.no_grad():
                torch._foreach_lerp_(self._average_weights, self._online_weights, 1 - self.config.ema_decay)

    @torch.no_grad()
    def update_copies(self) -> None:
        """Copy the weights to the copies in `precision`. The acting network is not updated by `train_batch`."""
        self._update_compute_network()
        if self.acting_network is not self.compute_network:
            torch._foreach_copy_(list(self.acting_network.parameters()), self._average_weights)

    def set_learning_rate(self, learning_rate: float) -> None:
        """Set the optimizer's learning rate for the next steps."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate

    def state_dict(self) -> LearnerState:
        """Weights and optimizer state by name, on the CPU.

        On a CPU most tensors share memory with this learner, so they change when it is trained.
        """
        weights = {name: _on_cpu(tensor) for name, tensor in self.average_network.state_dict().items()}
        state = self.optimizer.state_dict()["state"]
        optimizer = {
            f"{index}.{name}": _on_cpu(tensor) for index, entry in state.items() for name, tensor in entry.items()
        }
        if self.config.ema_decay:  # otherwise `weights` are those of the online network
            optimizer |= {f"{index}.{TRAINED}": _on_cpu(tensor) for index, tensor in enumerate(self._online_weights)}
        return LearnerState(weights, optimizer)

    def load_state_dict(self, state: LearnerState) -> None:
        """Copy weights and optimizer state from what `state_dict` of an equally configured learner returned.

        Raises:
            ValueError: a tensor has another name or shape than that of the network.
        """
        misfit = "the checkpoint's weights do not fit its configuration"
        try:
            self.average_network.load_state_dict(state.weights)
        except RuntimeError as error:
            raise ValueError(f"{misfit}: {str(error).splitlines()[-1].strip()}") from None
        entries: dict[int, dict[str, Tensor]] = {}
        for key, tensor in state.optimizer.items():
            index, _, name = key.partition(".")
            if not index.isdecimal() or int(index) >= len(self._online_weights):
                raise ValueError(f"{misfit}: there is no weight of number {index!r}")
            weight = self._online_weights[int(index)]
            if tensor.ndim and tensor.shape != weight.shape:
                raise ValueError(f"{misfit}: {key} is {tuple(tensor.shape)}, not {tuple(weight.shape)}")
            if name == TRAINED:
                with torch.no_grad():
                    weight.copy_(tensor)
                continue
            # The copy has the memory layout that the optimizer itself would choose.
            entries.setdefault(int(index), {})[name] = torch.empty_like(weight if tensor.ndim else tensor).copy_(tensor)
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": entries, "param_groups": groups})
        self.update_copies()

    def _eager_loss(
        self, states: Tensor, targets: Tensor, actions: Tensor, dropout_draws: torch.Generator | None
    ) -> Tensor:
        return q_loss(self.compute_network(states, dropout_draws), targets, actions, self.config.loss)

    def _in_precision(self, network: QNetwork) -> QNetwork:
        return network.in_bfloat16() if self.config.precision == "bfloat16" else network

    @torch.no_grad()
    def _update_compute_network(self) -> None:
        if self.compute_network is not self.online_network:
            torch._foreach_copy_(self._compute_weights, self._online_weights)


def _compiled(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`loss`, compiled to kernels that are selected independently of timings."""
    # torch advises TensorFloat32, but float32 is computed in float32 here.
    warnings.filterwarnings("ignore", "TensorFloat32 tensor cores for float32 .* not enabled", UserWarning)
    # Without this, inductor measures which of several equivalent kernels is fastest, and the order of sums varies.
    options: Any = {"deterministic": True} if _COMPILER == "inductor" else None
    compiled: Callable[..., Tensor] = torch.compile(loss, backend=_COMPILER, dynamic=False, options=options)
    return compiled


def _on_cpu(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous()
