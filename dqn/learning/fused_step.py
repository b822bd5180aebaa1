"""An optimizer step on a CPU that reads and writes each weight once.

The steps of torch's optimizers read and write all weights several times, and are limited by memory bandwidth. Here a
weight is read once, with its gradient and moments, and written once, with its copy in bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import njit
from torch import Tensor

from dqn.learning.optimizers import TensorFlowRMSprop

_SHARED_WEIGHTS = 200_000  # larger tensors are divided among the threads
_BLOCK = 2_048  # weights that a kernel computes at a time, few enough for the cache of a core


class _Adam(NamedTuple):
    """Constants of one step of Adam or RAdam, see `_adam_size`; all float32."""

    scale: np.float32  # of the gradients
    l2: np.float32  # weight decay
    beta: np.float32
    beta_squares: np.float32
    size: np.float32
    root: np.float32
    epsilon: np.float32


class _RMSprop(NamedTuple):
    """Constants of one step of TensorFlowRMSprop; all float32."""

    scale: np.float32  # of the gradients
    l2: np.float32  # weight decay
    decay: np.float32
    size: np.float32
    epsilon: np.float32


_Constants = _Adam | _RMSprop


class _Arrays(NamedTuple):
    """Flat arrays of one weight tensor, or of a part of it, all of the same length."""

    gradients: np.ndarray  # bits: uint32 of float32, or uint16 of bfloat16
    copies: np.ndarray  # bits of the copy in bfloat16, uint16; empty if there is none
    weights: np.ndarray  # float32
    averages: np.ndarray  # float32, of the gradients; empty for RMSprop
    squares: np.ndarray  # float32, averages of the squared gradients


class FusedStep:
    """`optimizer.step()` for float32 weights on the CPU, by that optimizer's formula and with its state.

    Supports Adam, RAdam and TensorFlowRMSprop, with weight decay. Results equal those of the optimizer's own step to
    within rounding, and do not depend on the number of threads.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, copies: Sequence[Tensor], threads: int) -> None:
        """Prepare steps of the weights of `optimizer`.

        Args:
            optimizer: with one group of float32 weights on the CPU.
            copies: for each weight its copy in bfloat16, or the weight itself.
            threads: number of CPU threads.
        """
        self._optimizer = optimizer
        self._weights: list[Tensor] = optimizer.param_groups[0]["params"]
        self._copies = copies
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads)

    @torch.no_grad()
    def __call__(self, gradients: Sequence[Tensor], scale: float) -> None:
        """Take a step with `gradients` (float32 or bfloat16) times `scale`, and update the copies."""
        parts: list[tuple[Callable[..., None], _Arrays, _Constants]] = []
        for weight, gradient, copy in zip(self._weights, gradients, self._copies, strict=True):
            kernel, moments, constants = self._rule(weight, scale)
            if gradient.stride() != weight.stride():
                gradient = torch.empty_like(weight, dtype=gradient.dtype).copy_(gradient)
            arrays = _Arrays(
                _bits(gradient),
                _bits(copy) if copy.dtype == torch.bfloat16 else np.zeros(0, np.uint16),
                _flat(weight).numpy(),
                *(_flat(moment).numpy() for moment in moments),
            )
            count = self._threads if weight.numel() > _SHARED_WEIGHTS else 1
            shares = zip(*(np.array_split(array, count) for array in arrays), strict=True)
            parts += [(kernel, _Arrays(*share), constants) for share in shares]
        # The largest parts first, so that threads which are done with one continue with the small ones.
        parts.sort(key=lambda part: -len(part[1].weights))
        calls = [self._pool.submit(kernel, arrays, constants) for kernel, arrays, constants in parts]
        for call in calls:
            call.result()

    def _rule(self, weight: Tensor, scale: float) -> tuple[Callable[..., None], list[Tensor], _Constants]:
        """The kernel, moments and constants of the next step of one weight."""
        group: dict[str, Any] = self._optimizer.param_groups[0]
        state, l2 = self._optimizer.state[weight], group["weight_decay"]
        if isinstance(self._optimizer, TensorFlowRMSprop):
            if not state:
                state["mean_square"] = torch.ones_like(weight)
            numbers = map(np.float32, (scale, l2, group["decay"], group["lr"], group["epsilon"]))
            return _rmsprop, [torch.zeros(0), state["mean_square"]], _RMSprop(*numbers)
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weight), torch.zeros_like(weight)
        state["step"] += 1
        size = _adam_size(self._optimizer, group, int(state["step"].item()))
        numbers = map(np.float32, (scale, l2, *group["betas"], *size))
        return _adam, [state["exp_avg"], state["exp_avg_sq"]], _Adam(*numbers)


def gradient_scale(gradients: Sequence[Tensor], limit: float) -> float:
    """Factor that scales the norm of all gradients down to `limit`, as torch's `clip_grad_norm_`; 1 if `limit` is 0."""
    if not limit:
        return 1.0
    norms = torch.stack([torch.linalg.vector_norm(gradient, dtype=torch.float32) for gradient in gradients])
    return min(1.0, limit / (float(torch.linalg.vector_norm(norms)) + 1e-6))


def _adam_size(optimizer: torch.optim.Optimizer, group: dict[str, Any], step: int) -> tuple[float, float, float]:
    """Size, root and epsilon in: weight ← weight - size · average / (root · sqrt(average of squares) + epsilon).

    Source: Kingma and Ba 2014 (Adam); Liu and others 2019 (RAdam, whose first steps do not use the squares).
    """
    first, second = (1 - beta**step for beta in group["betas"])
    if isinstance(optimizer, torch.optim.Adam):
        return group["lr"] / first, second**-0.5, group["eps"]
    assert isinstance(optimizer, torch.optim.RAdam)
    longest = 2 / (1 - group["betas"][1]) - 1
    length = longest - 2 * step * (1 - second) / second
    if length <= 5:
        return group["lr"] / first, 0.0, 1.0
    rectified = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
    return group["lr"] / first * (rectified * second) ** 0.5, 1.0, group["eps"]


def _flat(tensor: Tensor) -> Tensor:
    """All numbers of a dense tensor in the order of memory."""
    return tensor.as_strided((tensor.numel(),), (1,))


def _bits(tensor: Tensor) -> np.ndarray:
    """The numbers of a tensor as bits: uint32 of float32, uint16 of bfloat16, which is the upper half of float32."""
    low = tensor.dtype == torch.bfloat16
    return _flat(tensor).view(torch.int16 if low else torch.int32).numpy().view(np.uint16 if low else np.uint32)


@njit(cache=True, nogil=True, error_model="numpy")
def _adam(arrays: _Arrays, step: _Adam) -> None:
    rest, rest_squares = np.float32(1) - step.beta, np.float32(1) - step.beta_squares
    values = np.empty(_BLOCK, np.float32)
    for start in range(0, arrays.weights.size, _BLOCK):
        block = slice(start, min(start + _BLOCK, arrays.weights.size))
        weight, average, square = arrays.weights[block], arrays.averages[block], arrays.squares[block]
        _widen(arrays.gradients[block], values.view(np.uint32))
        for at in range(weight.size):
            gradient = values[at] * step.scale + step.l2 * weight[at]
            average[at] = step.beta * average[at] + rest * gradient
            square[at] = step.beta_squares * square[at] + rest_squares * gradient * gradient
            values[at] = weight[at] - step.size * average[at] / (step.root * np.sqrt(square[at]) + step.epsilon)
        weight[:] = values[: weight.size]
        _narrow(values.view(np.uint32), arrays.copies[block])


@njit(cache=True, nogil=True, error_model="numpy")
def _rmsprop(arrays: _Arrays, step: _RMSprop) -> None:
    rest = np.float32(1) - step.decay
    values = np.empty(_BLOCK, np.float32)
    for start in range(0, arrays.weights.size, _BLOCK):
        block = slice(start, min(start + _BLOCK, arrays.weights.size))
        weight, square = arrays.weights[block], arrays.squares[block]
        _widen(arrays.gradients[block], values.view(np.uint32))
        for at in range(weight.size):
            gradient = values[at] * step.scale + step.l2 * weight[at]
            square[at] = step.decay * square[at] + rest * gradient * gradient
            values[at] = weight[at] - step.size * gradient / np.sqrt(square[at] + step.epsilon)
        weight[:] = values[: weight.size]
        _narrow(values.view(np.uint32), arrays.copies[block])


@njit(cache=True, nogil=True)
def _widen(bits: np.ndarray, wide: np.ndarray) -> None:
    shift = np.uint32(32 - 8 * bits.itemsize)
    for at in range(bits.size):
        wide[at] = np.uint32(bits[at]) << shift


@njit(cache=True, nogil=True)
def _narrow(bits: np.ndarray, narrow: np.ndarray) -> None:
    # Rounded to the nearest bfloat16, and to the even one of two that are equally near.
    for at in range(narrow.size):
        value = bits[at]
        narrow[at] = np.uint16((value + np.uint32(0x7FFF) + ((value >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))
