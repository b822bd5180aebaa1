from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dqn.config import make_config
from dqn.learning import networks
from dqn.learning.networks import QNetwork, ResidualBlock, dropped_out, highest_of_neighbours, make_network, q_loss
from dqn.plots.network_figures import convolution_outputs, convolutions


def build(actions: int = 3, preset: str = "fast", **overrides: Any) -> QNetwork:
    return make_network(make_config(preset, overrides), actions)


def some_states(count: int) -> torch.Tensor:
    draws = np.random.default_rng(0)
    return torch.from_numpy(draws.integers(0, 256, (count, 105, 80, 2), np.uint8))


@pytest.fixture(scope="module")
def tutorial() -> QNetwork:
    return build(4, "tutorial")  # shared, because 38.6 million draws take seconds


def test_tutorial_network_has_38_6_million_parameters(tutorial: QNetwork) -> None:
    layers = [layer for layer in tutorial.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    parameters = [sum(weight.numel() for weight in layer.parameters()) for layer in layers]
    assert parameters == [304, 4_640, 18_496, 35_390_464, 1_049_600, 1_049_600, 1_049_600, 4_100]
    assert sum(weight.numel() for weight in tutorial.parameters()) == 38_566_804


def test_tutorial_convolutions_have_the_tutorials_sizes(tutorial: QNetwork) -> None:
    shapes, features = [], some_states(1).permute(0, 3, 1, 2).float()
    for layer in tutorial.convolutions:
        features = layer(features)
        if isinstance(layer, nn.Conv2d):
            shapes.append(tuple(features.shape[1:]))
    assert shapes == [(16, 53, 40), (32, 27, 20), (64, 27, 20)]


@pytest.mark.parametrize(("row", "column"), [(0, 0), (0, 39), (52, 0), (52, 39), (20, 30)])
def test_tutorial_padding_equals_tensorflow_same(tutorial: QNetwork, row: int, column: int) -> None:
    """TensorFlow's "same" adds the odd row or column of zeros after the image; torch's adds equally at both ends."""
    image = some_states(1)[0].permute(2, 0, 1).float()
    first = next(layer for layer in tutorial.convolutions if isinstance(layer, nn.Conv2d))
    window = torch.zeros(2, 3, 3)
    for y in range(3):
        for x in range(3):
            at = 2 * row + y - 1, 2 * column + x  # one row of zeros above, no column of zeros at the left
            if 0 <= at[0] < 105 and 0 <= at[1] < 80:
                window[:, y, x] = image[:, at[0], at[1]]
    expected = (first.weight * window).sum((1, 2, 3)) + first.bias
    with torch.no_grad():
        found = tutorial.convolutions[:2](image[None])[0, :, row, column]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


def test_tutorial_weights_are_truncated_normal(tutorial: QNetwork) -> None:
    for name, weight in tutorial.named_parameters():
        if name.endswith("bias"):
            assert not weight.any(), name
        else:
            assert weight.abs().max() <= 0.04 + 1e-6, name
    large = tutorial.dense[0].weight
    # A normal distribution that is truncated at two standard deviations has 0.88 of its standard deviation.
    assert large.std().item() == pytest.approx(0.0176, rel=0.01)
    assert large.mean().item() == pytest.approx(0, abs=1e-4)
    assert large.abs().max() > 0.0399


def test_nature_network_has_the_published_layers() -> None:
    network = build(6, network="nature", normalize=False)
    shapes = [tuple(weight.shape) for name, weight in network.named_parameters() if name.endswith("weight")]
    assert shapes == [(32, 2, 8, 8), (64, 32, 4, 4), (64, 64, 3, 3), (512, 64 * 9 * 6), (6, 512)]


def test_residual_network_has_two_impala_sections() -> None:
    network = build(4, normalize=False)
    shapes = [tuple(weight.shape) for name, weight in network.named_parameters() if name.endswith("weight")]
    first, second = [(16, 2, 4, 4), *[(16, 16, 3, 3)] * 2], [(32, 16, 3, 3), *[(32, 32, 3, 3)] * 2]
    assert shapes == [*first, *second, (256, 32 * 13 * 10), (4, 256)]
    sizes, features = [], some_states(2).permute(0, 3, 1, 2)
    with torch.no_grad():
        for layer in network.convolutions:
            features = layer(features)
            sizes.append(tuple(features.shape[2:]))
    assert sizes == [(51, 39), (26, 20), (26, 20), (26, 20), (13, 10), (13, 10), (13, 10)]


@pytest.mark.parametrize("normalize", [True, False])
def test_residual_block_adds_to_its_input(normalize: bool) -> None:
    network = build(normalize=normalize)
    block = next(layer for layer in network.convolutions if isinstance(layer, ResidualBlock))
    features = torch.randn(2, 16, 5, 4, generator=torch.Generator().manual_seed(0))
    kept, hidden = features.clone(), features
    for convolution in (layer for layer in block if isinstance(layer, nn.Conv2d)):
        if normalize:
            hidden = nn.functional.layer_norm(hidden, hidden.shape[1:])
        hidden = nn.functional.conv2d(hidden.relu(), convolution.weight, convolution.bias, padding=1)
    with torch.no_grad():
        torch.testing.assert_close(block(features), kept + hidden, rtol=1e-4, atol=1e-5)
    assert torch.equal(features, kept)


@pytest.mark.parametrize("size", [(51, 39), (26, 20), (3, 4)])
def test_gpu_max_pool_equals_torch_max_pool(size: tuple[int, int]) -> None:
    draws = torch.Generator().manual_seed(0)
    features = torch.randn(3, 16, *size, generator=draws, requires_grad=True)
    pooled, expected = highest_of_neighbours(features), nn.functional.max_pool2d(features, 3, 2, 1)
    assert torch.equal(pooled, expected)
    weights = torch.randn(pooled.shape, generator=draws)
    gradients = [torch.autograd.grad((each * weights).sum(), features)[0] for each in (pooled, expected)]
    torch.testing.assert_close(*gradients)


def test_small_network_has_a_million_parameters() -> None:
    network = build(4, network="small", normalize=False)
    layers = [layer for layer in network.convolutions if isinstance(layer, nn.Conv2d)]
    assert [(layer.kernel_size, layer.stride) for layer in layers] == [((3, 3), (s, s)) for s in (3, 2, 2)]
    shapes = [tuple(weight.shape) for name, weight in network.named_parameters() if name.endswith("weight")]
    assert shapes == [(16, 2, 3, 3), (32, 16, 3, 3), (64, 32, 3, 3), (384, 64 * 8 * 5), (4, 384)]
    assert sum(weight.numel() for weight in network.parameters()) == 1_008_404
    features = some_states(2).permute(0, 3, 1, 2)
    with torch.no_grad():
        found = network.convolutions[0](features)
        plain = nn.functional.conv2d(features / 255, layers[0].weight, layers[0].bias, stride=3)
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-5)  # PixelConvolution computes over blocks of pixels


def test_normalization_precedes_every_hidden_relu() -> None:
    network = build(normalize=True)
    layers = [layer for layer in network.modules() if not list(layer.children())]
    before = [layers[at - 1] for at, layer in enumerate(layers) if isinstance(layer, nn.ReLU)]
    assert [type(layer) for layer in before] == [nn.GroupNorm] * 5 + [nn.LayerNorm]
    assert all(layer.num_groups == 1 for layer in before if isinstance(layer, nn.GroupNorm))
    assert not any(isinstance(layer, nn.GroupNorm | nn.LayerNorm) for layer in build(normalize=False).modules())


@pytest.mark.parametrize("preset", ["fast", "tutorial"])
def test_network_estimates_one_q_value_per_action(preset: str, tutorial: QNetwork) -> None:
    network = tutorial if preset == "tutorial" else build(4)
    with torch.no_grad():
        q_values = network(some_states(2))
        assert q_values.shape == (2, 4) and q_values.dtype == torch.float32
        torch.testing.assert_close(network(some_states(2)[1:]), q_values[1:], rtol=1e-4, atol=1e-4)
    assert (q_values[0] != q_values[1]).any()


def test_scaled_input_is_divided_by_255() -> None:
    # Without biases and normalization the network is linear in the scale of its input.
    with torch.no_grad():
        plain = build(normalize=False, scale_input=False)(some_states(2))
        scaled = build(normalize=False, scale_input=True)(some_states(2))
    torch.testing.assert_close(scaled * 255, plain, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("network", ["nature", "residual", "tutorial"])
def test_initial_weights_depend_only_on_the_seed(network: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws from the global generator have no effect."""
    # The tutorial's first dense layer has 35 million weights, which take seconds to draw.
    layer = networks.Linear
    monkeypatch.setattr(networks, "Linear", lambda inputs, outputs: layer(8, 8))
    generator = torch.get_rng_state()
    first = build(network=network, seed=5).state_dict()
    assert torch.equal(torch.get_rng_state(), generator), "a network draws from the global generator"
    torch.rand(3)
    second, other = build(network=network, seed=5).state_dict(), build(network=network, seed=6).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    weights = [name for name in first if first[name].ndim > 1]
    assert weights and not any(torch.equal(first[name], other[name]) for name in weights)


def test_initial_weights_are_scaled_to_their_inputs() -> None:
    network = build(normalize=False)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            inputs = layer.weight[0].numel()
            assert layer.weight.std().item() == pytest.approx((2 / inputs) ** 0.5, rel=0.1)
            assert not layer.bias.any()


def test_dropout_keeps_the_mean() -> None:
    outputs = torch.full((200, 500), 3.0)
    dropped = dropped_out(outputs, 0.25, torch.Generator().manual_seed(0))
    torch.testing.assert_close(dropped[dropped != 0], torch.tensor(4.0).expand(int((dropped != 0).sum())))
    assert (dropped == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert torch.equal(dropped, dropped_out(outputs, 0.25, torch.Generator().manual_seed(0)))
    assert torch.equal(outputs, dropped_out(outputs, 0.0, torch.Generator().manual_seed(0)))


def test_dropout_applies_only_to_hidden_dense_layers() -> None:
    network = build(4, "tutorial", network="small", dropout=0.999999)
    with torch.no_grad():
        found = network(some_states(3), torch.Generator().manual_seed(0))
    assert torch.equal(found, network.dense[-1].bias.expand(3, 4)), "all outputs before the last layer are dropped"


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        # errors: row 0 (1, -2), row 1 (0.5, 3); actions 1 and 0
        ("all-actions", ((1 + 4) + (0.25 + 9)) / 2),
        ("action-taken", 0.5 * (4 + 0.25) / 2),
    ],
)
def test_q_loss_by_hand(kind: str, expected: float) -> None:
    targets = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    q_values = targets + torch.tensor([[1.0, -2.0], [0.5, 3.0]])
    assert q_loss(q_values, targets, torch.tensor([1, 0]), kind).item() == pytest.approx(expected)


@pytest.mark.parametrize(("kind", "moved"), [("all-actions", [True, True]), ("action-taken", [False, True])])
def test_q_loss_has_gradients_for_its_actions(kind: str, moved: list[bool]) -> None:
    q_values = torch.zeros(1, 2, requires_grad=True)
    q_loss(q_values, torch.ones(1, 2), torch.tensor([1]), kind).backward()
    assert q_values.grad is not None and (q_values.grad[0] != 0).tolist() == moved


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        ("nature", {1: (32, 25, 19), 2: (64, 11, 8), 3: (64, 9, 6)}),
        # The second convolution of each block has no ReLU of its own, except that a ReLU follows the last block.
        ("residual", {**dict.fromkeys((1, 2), (16, 26, 20)), **dict.fromkeys((4, 5, 6), (32, 13, 10))}),
    ],
)
def test_convolution_outputs_are_numbered_by_layer(network: str, expected: dict[int, tuple[int, ...]]) -> None:
    built = build(network=network)
    outputs = convolution_outputs(built, some_states(1)[0].numpy())
    assert {number: each.shape for number, each in outputs.items()} == expected
    assert all(each.min() == 0 < each.max() for each in outputs.values())
    channels = [layer.out_channels for layer in convolutions(built)]
    assert all(channels[number - 1] == len(each) for number, each in outputs.items())
