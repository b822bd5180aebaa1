from __future__ import annotations

import pytest
import torch

from dqn.config import make_config
from dqn.learning.optimizers import TensorFlowRMSprop, make_optimizer


def test_rmsprop_matches_tensorflow_formula() -> None:
    """The mean square starts at 1, and epsilon is inside the root."""
    weight = torch.tensor([1.0])
    optimizer = TensorFlowRMSprop([weight], lr=0.5, decay=0.9, epsilon=0.04)
    mean_square, expected = 1.0, 1.0
    for gradient in (2.0, 0.0, -1.0):
        weight.grad = torch.tensor([gradient])
        optimizer.step()
        mean_square = 0.9 * mean_square + 0.1 * gradient**2
        expected -= 0.5 * gradient / (mean_square + 0.04) ** 0.5
        assert weight.item() == pytest.approx(expected, rel=1e-6)


def test_rmsprop_defaults_are_the_tutorials() -> None:
    defaults = TensorFlowRMSprop([torch.zeros(1)]).defaults
    assert (defaults["decay"], defaults["epsilon"]) == (0.9, 1e-10)


def test_rmsprop_mean_square_is_per_weight() -> None:
    together = [torch.tensor([1.0]), torch.tensor([[2.0, 3.0]])]
    alone = [weight.clone() for weight in together]
    optimizers = [TensorFlowRMSprop(together, lr=0.1)] + [TensorFlowRMSprop([weight], lr=0.1) for weight in alone]
    for step in range(3):
        for weights in (together, alone):
            weights[0].grad = torch.tensor([1.0 + step])
            weights[1].grad = torch.tensor([[10.0, -0.1 * step]])
        for optimizer in optimizers:
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))


def test_rmsprop_skips_weight_without_gradient() -> None:
    weights = [torch.tensor([1.0]), torch.tensor([2.0])]
    optimizer = TensorFlowRMSprop(weights, lr=0.1)
    optimizer.step()
    assert [weight.item() for weight in weights] == [1, 2]
    weights[1].grad = torch.tensor([1.0])
    optimizer.step()
    assert weights[0].item() == 1 and weights[1].item() < 2


@pytest.mark.parametrize(
    ("name", "kind"), [("rmsprop", TensorFlowRMSprop), ("adam", torch.optim.Adam), ("radam", torch.optim.RAdam)]
)
def test_make_optimizer_returns_the_named_class(name: str, kind: type) -> None:
    weight = torch.zeros(2)
    optimizer = make_optimizer(make_config("fast", {"optimizer": name}), [weight])
    assert isinstance(optimizer, kind)
    assert optimizer.param_groups[0]["params"][0] is weight


@pytest.mark.parametrize("name", ["rmsprop", "adam", "radam"])
def test_l2_equals_penalty_of_half_squared_weights(name: str) -> None:
    weights = [torch.tensor([3.0, -2.0], requires_grad=True) for _ in range(2)]
    for weight, l2 in zip(weights, (0.25, 0.0), strict=True):
        optimizer = make_optimizer(make_config("fast", {"optimizer": name, "l2": l2}), [weight])
        for step in range(8):
            optimizer.zero_grad()
            loss = (weight * torch.tensor([1.0 + step, 0.5])).sum()
            (loss if l2 else loss + 0.25 / 2 * weight.square().sum()).backward()
            optimizer.step()
    torch.testing.assert_close(weights[0], weights[1])


@pytest.mark.parametrize("name", ["rmsprop", "adam", "radam"])
def test_optimizer_minimizes_quadratic(name: str) -> None:
    weight = torch.tensor([3.0, -2.0], requires_grad=True)
    optimizer = make_optimizer(make_config("fast", {"optimizer": name}), [weight])
    for group in optimizer.param_groups:
        group["lr"] = 0.05
    for _ in range(300):
        optimizer.zero_grad()
        weight.square().sum().backward()
        optimizer.step()
    assert weight.abs().max().item() < 0.1
