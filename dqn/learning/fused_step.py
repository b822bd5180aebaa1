"""An optimizer step on a CPU in one pass over memory.

torch's own steps go over every weight several times, and memory is what they wait for. Here a weight
is read once, with its gradient and moments, and written once, with its copy in bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from dqn.learning.optimizers import TensorFlowRMSprop

_SHARED_WEIGHTS = 200_000  # a tensor with more is shared among threads
_BLOCK = 2_048  # weights that a kernel has at hand at a time

_Rule = tuple[Callable[..., None], list[Tensor], tuple[float, ...]]


class FusedStep:
    """`optimizer.step()` for float32 weights on the CPU, with that optimizer's own formula and state.

    For Adam, RAdam and TensorFlowRMSprop, with weight decay; the same to within rounding. What it computes does
    not depend on the number of threads.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, copies: Sequence[Tensor], threads: int) -> None:
        """Step the weights of `optimizer`, with `copies` of them in bfloat16, or the weights themselves."""
        self._optimizer = optimizer
        self._weights: list[Tensor] = optimizer.param_groups[0]["params"]
        self._copies = copies
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads)

    @torch.no_grad()
    def __call__(self, gradients: Sequence[Tensor], scale: float) -> None:
        """Take a step with `gradients` (float32 or bfloat16) times `scale`, and bring the copies up to date."""
        parts, l2 = [], self._optimizer.param_groups[0]["weight_decay"]
        for weight, gradient, copy in zip(self._weights, gradients, self._copies, strict=True):
            kernel, moments, constants = self._rule(weight)
            if gradient.stride() != weight.stride():
                gradient = torch.empty_like(weight, dtype=gradient.dtype).copy_(gradient)
            arrays = [_bits(gradient), _bits(copy) if copy.dtype == torch.bfloat16 else _NONE, _flat(weight).numpy()]
            arrays += [_flat(moment).numpy() for moment in moments]
            count = self._threads if weight.numel() > _SHARED_WEIGHTS else 1
            shares = zip(*(np.array_split(array, count) for array in arrays), strict=True)
            parts += [(kernel, share, constants) for share in shares]
        parts.sort(key=lambda part: -len(part[1][2]))  # threads that are done with the large ones take the small
        calls = [
            self._pool.submit(kernel, *share, *map(np.float32, (scale, l2, *constants)))
            for kernel, share, constants in parts
        ]
        for call in calls:
            call.result()

    def _rule(self, weight: Tensor) -> _Rule:
        """The kernel, moments and constants of the next step of one weight."""
        group: dict[str, Any] = self._optimizer.param_groups[0]
        state = self._optimizer.state[weight]
        if isinstance(self._optimizer, TensorFlowRMSprop):
            if not state:
                state["mean_square"] = torch.ones_like(weight)
            return _rmsprop, [state["mean_square"]], (group["decay"], group["lr"], group["epsilon"])
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weight), torch.zeros_like(weight)
        state["step"] += 1
        size, root, epsilon = _adam_size(self._optimizer, group, int(state["step"].item()))
        return _adam, [state["exp_avg"], state["exp_avg_sq"]], (*group["betas"], size, root, epsilon)


def gradient_scale(gradients: Sequence[Tensor], limit: float) -> float:
    """What brings the norm of all gradients together down to `limit`, as torch's `clip_grad_norm_`; 0 is none."""
    if not limit:
        return 1.0
    norms = torch.stack([torch.linalg.vector_norm(gradient, dtype=torch.float32) for gradient in gradients])
    return min(1.0, limit / (float(torch.linalg.vector_norm(norms)) + 1e-6))


def _adam_size(optimizer: torch.optim.Optimizer, group: dict[str, Any], step: int) -> tuple[float, float, float]:
    """Size, root and epsilon in: weight ← weight - size · average / (root · sqrt(average of squares) + epsilon).

    Source: Kingma and Ba 2014 (Adam); Liu and others 2019 (RAdam), whose first steps know no squares.
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
    """All numbers of a tensor without gaps, in the order of memory."""
    return tensor.as_strided((tensor.numel(),), (1,))


def _bits(tensor: Tensor) -> np.ndarray:
    """The numbers of a tensor as bits: uint32 of float32, uint16 of bfloat16, which is the upper half of that."""
    low = tensor.dtype == torch.bfloat16
    return _flat(tensor).view(torch.int16 if low else torch.int32).numpy().view(np.uint16 if low else np.uint32)


_NONE = np.zeros(0, np.uint16)


@njit(cache=True, nogil=True, error_model="numpy")
def _adam(
    gradients: np.ndarray,
    copies: np.ndarray,
    weights: np.ndarray,
    averages: np.ndarray,
    squares: np.ndarray,
    scale: np.float32,
    l2: np.float32,
    beta: np.float32,
    beta_squares: np.float32,
    size: np.float32,
    root: np.float32,
    epsilon: np.float32,
) -> None:
    rest, rest_squares = np.float32(1) - beta, np.float32(1) - beta_squares
    values = np.empty(_BLOCK, np.float32)
    for start in range(0, weights.size, _BLOCK):
        block = slice(start, min(start + _BLOCK, weights.size))
        weight, average, square = weights[block], averages[block], squares[block]
        _widen(gradients[block], values.view(np.uint32))
        for at in range(weight.size):
            gradient = values[at] * scale + l2 * weight[at]
            average[at] = beta * average[at] + rest * gradient
            square[at] = beta_squares * square[at] + rest_squares * gradient * gradient
            values[at] = weight[at] - size * average[at] / (root * np.sqrt(square[at]) + epsilon)
        weight[:] = values[: weight.size]
        _narrow(values.view(np.uint32), copies[block])


@njit(cache=True, nogil=True, error_model="numpy")
def _rmsprop(
    gradients: np.ndarray,
    copies: np.ndarray,
    weights: np.ndarray,
    mean_squares: np.ndarray,
    scale: np.float32,
    l2: np.float32,
    decay: np.float32,
    size: np.float32,
    epsilon: np.float32,
) -> None:
    rest = np.float32(1) - decay
    values = np.empty(_BLOCK, np.float32)
    for start in range(0, weights.size, _BLOCK):
        block = slice(start, min(start + _BLOCK, weights.size))
        weight, mean_square = weights[block], mean_squares[block]
        _widen(gradients[block], values.view(np.uint32))
        for at in range(weight.size):
            gradient = values[at] * scale + l2 * weight[at]
            mean_square[at] = decay * mean_square[at] + rest * gradient * gradient
            values[at] = weight[at] - size * gradient / np.sqrt(mean_square[at] + epsilon)
        weight[:] = values[: weight.size]
        _narrow(values.view(np.uint32), copies[block])


@njit(cache=True, nogil=True)
def _widen(bits: np.ndarray, wide: np.ndarray) -> None:
    shift = np.uint32(32 - 8 * bits.itemsize)
    for at in range(bits.size):
        wide[at] = np.uint32(bits[at]) << shift


@njit(cache=True, nogil=True)
def _narrow(bits: np.ndarray, narrow: np.ndarray) -> None:
    # To the nearest bfloat16, and to the even one of two that are equally near.
    for at in range(narrow.size):
        value = bits[at]
        narrow[at] = np.uint16((value + np.uint32(0x7FFF) + ((value >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))
