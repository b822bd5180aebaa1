from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from dqn.config import make_config
from dqn.learning.fused_step import FusedStep, gradient_scale
from dqn.learning.optimizers import make_optimizer

SHAPES = [(32, 2, 8, 8), (7,), (500, 600), (3, 1)]


def weights_of(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(shape, generator=generator) for shape in SHAPES]
    weights[0] = weights[0].contiguous(memory_format=torch.channels_last)
    return weights


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("low", [False, True])
@pytest.mark.parametrize("l2", [0.0, 0.1])
@pytest.mark.parametrize("name", ["rmsprop", "adam", "radam"])
def test_fused_step_equals_the_optimizers_step(name: str, l2: float, low: bool, threads: int) -> None:
    dtype = torch.bfloat16 if low else torch.float32
    weights, theirs = weights_of(0), weights_of(0)
    copies = [weight.to(dtype) for weight in weights] if low else weights
    config = make_config("fast", {"optimizer": name, "l2": l2})
    optimizer, reference = make_optimizer(config, weights), make_optimizer(config, theirs)
    step = FusedStep(optimizer, copies, threads)
    for seed in range(1, 12):
        gradients = [gradient.to(dtype) for gradient in weights_of(seed)]
        gradients[0] = gradients[0].contiguous()  # another memory layout than the weight's
        for weight, gradient in zip(theirs, gradients, strict=True):
            weight.grad = gradient.float() * 0.5
        for group in (*optimizer.param_groups, *reference.param_groups):
            group["lr"] = 0.01 * seed
        reference.step()
        step(gradients, 0.5)
        for weight, other, low_copy in zip(weights, theirs, copies, strict=True):
            torch.testing.assert_close(weight, other, rtol=2e-6, atol=5e-6)
            assert torch.equal(low_copy, weight.to(dtype))
    ours, torchs = optimizer.state_dict()["state"], reference.state_dict()["state"]
    assert {key: state.keys() for key, state in ours.items()} == {key: state.keys() for key, state in torchs.items()}
    for index, state in ours.items():
        for key, tensor in state.items():
            torch.testing.assert_close(tensor, torchs[index][key], rtol=1e-5, atol=1e-6)


def test_fused_step_is_independent_of_threads() -> None:
    results = []
    for threads in (1, 2, 5):
        weights = weights_of(0)
        step = FusedStep(make_optimizer(make_config("fast"), weights), weights, threads)
        for seed in range(1, 9):
            step(weights_of(seed), 0.3)
        results.append(weights)
    for others in results[1:]:
        assert all(torch.equal(weight, other) for weight, other in zip(results[0], others, strict=True))


def test_fused_step_continues_from_loaded_state() -> None:
    weights = weights_of(0)
    optimizer = make_optimizer(make_config("fast"), weights)
    step = FusedStep(optimizer, weights, 2)
    for seed in range(1, 8):
        step(weights_of(seed), 1.0)
    others = [weight.clone() for weight in weights]
    again = make_optimizer(make_config("fast"), others)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    step(weights_of(9), 1.0)
    FusedStep(again, others, 2)(weights_of(9), 1.0)
    assert all(torch.equal(weight, other) for weight, other in zip(weights, others, strict=True))


@pytest.mark.parametrize("limit", [0.0, 0.5, 1e9])
def test_gradient_scale_equals_torch_clipping(limit: float) -> None:
    gradients = weights_of(0)
    scale = gradient_scale(gradients, limit)
    clipped = [torch.zeros_like(gradient) for gradient in gradients]
    for weight, gradient in zip(clipped, gradients, strict=True):
        weight.grad = gradient.clone()
    if limit:
        nn.utils.clip_grad_norm_(clipped, limit)
    for weight, gradient in zip(clipped, gradients, strict=True):
        assert weight.grad is not None
        torch.testing.assert_close(gradient * scale, weight.grad)
