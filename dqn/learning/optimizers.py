"""Optimizers by name, and TensorFlow's variant of RMSProp, which torch does not have."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from dqn.config import TrainConfig


class _WithoutDynamo(torch.optim.Optimizer):
    """An optimizer whose methods, other than `step`, do not import torch._dynamo, which takes over two seconds.

    torch wraps these methods to exclude them from torch.compile. No code that calls them is compiled here.
    """

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)


class Adam(_WithoutDynamo, torch.optim.Adam):
    """torch's Adam."""


class RAdam(_WithoutDynamo, torch.optim.RAdam):
    """torch's RAdam."""


class TensorFlowRMSprop(_WithoutDynamo):
    """RMSProp by the formula of `tf.train.RMSPropOptimizer`.

    gradient ← gradient + weight_decay · weight
    mean_square ← decay · mean_square + (1 - decay) · gradient², starting at 1
    weight ← weight - learning_rate · gradient / sqrt(mean_square + epsilon)

    torch.optim.RMSprop starts at 0 and adds epsilon outside the root.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-3,
        decay: float = 0.9,
        epsilon: float = 1e-10,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "decay": decay, "epsilon": epsilon, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take one step with the gradients in `weight.grad`; weights without a gradient stay."""
        assert closure is None
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if not weights:
                continue
            gradients = [weight.grad for weight in weights]
            if group["weight_decay"]:
                gradients = list(torch._foreach_add(gradients, weights, alpha=group["weight_decay"]))
            for weight in weights:
                if not self.state[weight]:
                    self.state[weight]["mean_square"] = torch.ones_like(weight)
            mean_squares = [self.state[weight]["mean_square"] for weight in weights]
            torch._foreach_mul_(mean_squares, group["decay"])
            torch._foreach_addcmul_(mean_squares, gradients, gradients, 1 - group["decay"])
            roots = torch._foreach_add(mean_squares, group["epsilon"])
            torch._foreach_sqrt_(roots)
            torch._foreach_addcdiv_(weights, gradients, roots, -group["lr"])


def make_optimizer(config: TrainConfig, weights: Iterable[Tensor]) -> torch.optim.Optimizer:
    """The optimizer of a configuration for `weights`. Its learning rate is set before each optimization run."""
    if config.optimizer == "rmsprop":
        return TensorFlowRMSprop(weights, weight_decay=config.l2)
    if config.optimizer == "adam":
        # Fused into one kernel on a GPU. The CPU uses dqn.learning.fused_step, and torch has no fused RAdam.
        gpu = config.device == "cuda"
        return Adam(weights, weight_decay=config.l2, fused=gpu, foreach=not gpu)
    return RAdam(weights, foreach=True, weight_decay=config.l2)
