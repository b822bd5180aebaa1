"""The networks that estimate Q-values from states."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from dqn.config import TrainConfig
from dqn.envs.observations import STATE_HEIGHT, STATE_WIDTH
from dqn.randomness import torch_generator


class QNetwork(nn.Module):
    """Base class of the networks: states (N, 105, 80, C) uint8 to Q-values (N, A) float32.

    A subclass makes `convolutions` and `dense` and then calls `initialize`.

    With `normalize`, each hidden layer is normalized before its ReLU, convolutions over channels and space together
    (Ba, Kiros and Hinton 2016, Layer Normalization; Gallici and others 2024, Parallel Q-Network, use it in place of a
    target network).
    """

    convolutions: nn.Sequential
    dense: nn.Sequential

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        self.state_shape = STATE_HEIGHT, STATE_WIDTH, config.state_channels
        self.dropout = config.dropout

    def forward(self, states: Tensor, dropout_draws: torch.Generator | None = None) -> Tensor:
        """Q-values (N, A) float32 of states (N, 105, 80, C) uint8.

        Args:
            states: the states, channels last.
            dropout_draws: generator on the CPU for dropout after each hidden dense layer; None disables dropout.
        """
        assert states.dtype == torch.uint8 and states.shape[1:] == self.state_shape
        features = self.convolutions(states.permute(0, 3, 1, 2))
        # Flattened pixel by pixel, which is the order in memory.
        hidden = features.permute(0, 2, 3, 1).flatten(1)
        for layer in self.dense[:-1].children():
            hidden = layer(hidden)
            if dropout_draws is not None and isinstance(layer, nn.ReLU):
                hidden = dropped_out(hidden, self.dropout, dropout_draws)
        q_values: Tensor = self.dense[-1](hidden.to(self.dense[-1].weight.dtype))
        return q_values

    def in_bfloat16(self) -> QNetwork:
        """A copy in bfloat16 that shares the last layer, in float32, with this network.

        The Q-values of a state's actions differ by less than the resolution of bfloat16, which is 1/64 at 2.
        """
        twin = copy.deepcopy(self).to(torch.bfloat16)
        twin.dense[-1] = self.dense[-1]
        return twin

    @torch.no_grad()
    def initialize(self, seed: int) -> None:
        """Draw the initial weights from the run's seed, with biases at zero, and store convolutions channels last."""
        self.convolutions.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        draws = torch_generator(seed, "weights")
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                assert layer.bias is not None
                self.draw_weights(layer.weight, draws)
                nn.init.zeros_(layer.bias)

    def draw_weights(self, weights: Tensor, draws: torch.Generator) -> None:
        """Fill the weights of one layer with normal draws of variance 2 / inputs.

        Source: He and others 2015, Delving Deep into Rectifiers.
        """
        nn.init.kaiming_normal_(weights, nonlinearity="relu", generator=draws)


class TutorialNetwork(QNetwork):
    """The tutorial's network: 38.6 million parameters for 4 actions.

    Convolutions are padded as TensorFlow's "same" does: where an odd number of zeros is added to the rows or columns,
    the extra one comes after the image.
    """

    def __init__(self, config: TrainConfig, actions: int) -> None:
        super().__init__(config)
        norm = config.normalize
        self.convolutions = nn.Sequential(
            nn.ZeroPad2d((0, 1, 1, 1)),
            _pixel_convolution(config, 16, kernel=3, stride=2),  # 16 x 53 x 40
            *_group_norm(16, norm),
            nn.ReLU(inplace=True),
            nn.ZeroPad2d((0, 1, 1, 1)),
            Convolution(16, 32, kernel_size=3, stride=2),  # 32 x 27 x 20
            *_group_norm(32, norm),
            nn.ReLU(inplace=True),
            nn.ZeroPad2d((1, 1, 1, 1)),
            Convolution(32, 64, kernel_size=3, stride=1),  # 64 x 27 x 20
            *_group_norm(64, norm),
            nn.ReLU(inplace=True),
        )
        self.dense = nn.Sequential(
            Linear(64 * 27 * 20, 1024),
            *_layer_norm(1024, norm),
            nn.ReLU(inplace=True),
            Linear(1024, 1024),
            *_layer_norm(1024, norm),
            nn.ReLU(inplace=True),
            Linear(1024, 1024),
            *_layer_norm(1024, norm),
            nn.ReLU(inplace=True),
            Linear(1024, 1024),
            *_layer_norm(1024, norm),
            nn.ReLU(inplace=True),
            Linear(1024, actions),
        )
        self.initialize(config.seed)

    def draw_weights(self, weights: Tensor, draws: torch.Generator) -> None:
        """Fill the weights of one layer with normal draws of standard deviation 0.02, cut off at 0.04."""
        nn.init.trunc_normal_(weights, std=0.02, a=-0.04, b=0.04, generator=draws)


class NipsNetwork(QNetwork):
    """The network of Mnih and others 2013, Playing Atari with Deep Reinforcement Learning."""

    def __init__(self, config: TrainConfig, actions: int) -> None:
        super().__init__(config)
        norm = config.normalize
        self.convolutions = nn.Sequential(
            _pixel_convolution(config, 16, kernel=8, stride=4),  # 16 x 25 x 19
            *_group_norm(16, norm),
            nn.ReLU(inplace=True),
            Convolution(16, 32, kernel_size=4, stride=2),  # 32 x 11 x 8
            *_group_norm(32, norm),
            nn.ReLU(inplace=True),
        )
        self.dense = nn.Sequential(
            Linear(32 * 11 * 8, 256),
            *_layer_norm(256, norm),
            nn.ReLU(inplace=True),
            Linear(256, actions),
        )
        self.initialize(config.seed)


class NatureNetwork(QNetwork):
    """The network of Mnih and others 2015, Human-level Control through Deep Reinforcement Learning."""

    def __init__(self, config: TrainConfig, actions: int) -> None:
        super().__init__(config)
        norm = config.normalize
        self.convolutions = nn.Sequential(
            _pixel_convolution(config, 32, kernel=8, stride=4),  # 32 x 25 x 19
            *_group_norm(32, norm),
            nn.ReLU(inplace=True),
            Convolution(32, 64, kernel_size=4, stride=2),  # 64 x 11 x 8
            *_group_norm(64, norm),
            nn.ReLU(inplace=True),
            Convolution(64, 64, kernel_size=3, stride=1),  # 64 x 9 x 6
            *_group_norm(64, norm),
            nn.ReLU(inplace=True),
        )
        self.dense = nn.Sequential(
            Linear(64 * 9 * 6, 512),
            *_layer_norm(512, norm),
            nn.ReLU(inplace=True),
            Linear(512, actions),
        )
        self.initialize(config.seed)


class SmallNetwork(QNetwork):
    """The tutorial's network with longer strides and one dense layer: 1.0 million parameters for 4 actions.

    It needs a third of the multiplications of `nature`.
    """

    def __init__(self, config: TrainConfig, actions: int) -> None:
        super().__init__(config)
        norm = config.normalize
        self.convolutions = nn.Sequential(
            _pixel_convolution(config, 16, kernel=3, stride=3),  # 16 x 35 x 26
            *_group_norm(16, norm),
            nn.ReLU(inplace=True),
            Convolution(16, 32, kernel_size=3, stride=2),  # 32 x 17 x 12
            *_group_norm(32, norm),
            nn.ReLU(inplace=True),
            Convolution(32, 64, kernel_size=3, stride=2),  # 64 x 8 x 5
            *_group_norm(64, norm),
            nn.ReLU(inplace=True),
        )
        self.dense = nn.Sequential(
            Linear(64 * 8 * 5, 384),
            *_layer_norm(384, norm),
            nn.ReLU(inplace=True),
            Linear(384, actions),
        )
        self.initialize(config.seed)


class ResidualNetwork(QNetwork):
    """A short form of IMPALA's network (Espeholt and others 2018).

    It has two sections in place of three, one residual block in each in place of two, and the first convolution has a
    stride of 2.
    """

    def __init__(self, config: TrainConfig, actions: int) -> None:
        super().__init__(config)
        norm = config.normalize
        self.convolutions = nn.Sequential(
            _pixel_convolution(config, 16, kernel=4, stride=2),  # 16 x 51 x 39
            MaxPool(3, stride=2, padding=1),  # 16 x 26 x 20
            ResidualBlock(16, norm),
            Convolution(16, 32, kernel_size=3, stride=1, padding=1),  # 32 x 26 x 20
            MaxPool(3, stride=2, padding=1),  # 32 x 13 x 10
            ResidualBlock(32, norm),
            *_group_norm(32, norm),
            nn.ReLU(inplace=True),
        )
        self.dense = nn.Sequential(
            Linear(32 * 13 * 10, 256),
            *_layer_norm(256, norm),
            nn.ReLU(inplace=True),
            Linear(256, actions),
        )
        self.initialize(config.seed)


NETWORKS: dict[str, Callable[[TrainConfig, int], QNetwork]] = {
    "tutorial": TutorialNetwork,
    "nips": NipsNetwork,
    "nature": NatureNetwork,
    "small": SmallNetwork,
    "residual": ResidualNetwork,
}


def make_network(config: TrainConfig, actions: int) -> QNetwork:
    """The network that `config.network` names, on the CPU, with initial weights drawn from the run's seed."""
    return NETWORKS[config.network](config, actions)


class Convolution(nn.Conv2d):
    """A convolution without initial weights; QNetwork.initialize draws them."""

    def reset_parameters(self) -> None:
        """Do nothing, because torch would draw from its global generator."""


class Linear(nn.Linear):
    """A dense layer without initial weights; QNetwork.initialize draws them."""

    def reset_parameters(self) -> None:
        """Do nothing, because torch would draw from its global generator."""


class PixelConvolution(Convolution):
    """The first convolution, over pixels (N, C, height, width) uint8 which are stored channels last.

    Where the stride divides the kernel, it is computed as a convolution of stride 1 over blocks of stride by stride
    pixels. That is the same sum over more channels, which processors compute several times faster.
    """

    scale_input = False  # divide pixels by 255; the weights are divided instead, because there are fewer of them

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels (N, C, height, width) uint8 to features in the precision of the weights."""
        weight = self.weight / 255 if self.scale_input else self.weight
        kernel, stride = self.kernel_size[0], self.stride[0]
        if kernel % stride:
            outputs: Tensor = self._conv_forward(pixels.to(weight.dtype), weight, self.bias)
            return outputs
        return functional.conv2d(_blocks(pixels, stride).to(weight.dtype), _blocks(weight, stride), self.bias)


class MaxPool(nn.MaxPool2d):
    """Maximum of 3 by 3 neighbours at every second row and column, with repeatable gradients on a GPU."""

    def forward(self, features: Tensor) -> Tensor:
        """Features (N, C, height, width) to half the height and width, rounded up."""
        if features.is_cuda:
            return highest_of_neighbours(features)
        pooled: Tensor = super().forward(features)
        return pooled


class ResidualBlock(nn.Sequential):
    """Two convolutions, each after a ReLU, whose output is added to the block's input.

    Source: He and others 2016, Identity Mappings in Deep Residual Networks.
    """

    def __init__(self, channels: int, normalize: bool) -> None:
        super().__init__(
            *_group_norm(channels, normalize),
            nn.ReLU(inplace=normalize),  # without normalization the ReLU reads the block's input, which is added below
            Convolution(channels, channels, kernel_size=3, stride=1, padding=1),
            *_group_norm(channels, normalize),
            nn.ReLU(inplace=True),
            Convolution(channels, channels, kernel_size=3, stride=1, padding=1),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Features (N, C, height, width) to features of the same shape."""
        added: Tensor = super().forward(features)  # type: ignore[no-untyped-call]
        return features + added


def _pixel_convolution(config: TrainConfig, filters: int, kernel: int, stride: int) -> PixelConvolution:
    """The first convolution of a network, over the state's channels."""
    layer = PixelConvolution(config.state_channels, filters, kernel, stride)
    layer.scale_input = config.scale_input
    return layer


def _group_norm(channels: int, normalize: bool) -> list[nn.Module]:
    """The normalization after a convolution, over channels and space together; nothing without `normalize`."""
    return [nn.GroupNorm(1, channels)] if normalize else []


def _layer_norm(units: int, normalize: bool) -> list[nn.Module]:
    """The normalization after a dense layer; nothing without `normalize`."""
    return [nn.LayerNorm(units)] if normalize else []


_NUMBERS = (torch.int64, torch.int32, torch.int16, torch.uint8)


def _blocks(pixels: Tensor, size: int) -> Tensor:
    """(N, C, h, w) as (N, size · size · C, h // size, w // size), channels last; incomplete blocks are cut off."""
    count, channels, height, width = pixels.shape
    height, width = height // size, width // size
    rows = pixels.permute(0, 2, 3, 1)[:, : height * size, : width * size].reshape(count, height, size, width, -1)
    # A row of a block is copied as few large integers. Compiled code does not need that, and inductor of torch 2.11
    # fails to lower the views.
    if pixels.dtype == torch.uint8 and not torch.compiler.is_compiling():
        whole = next(kind for kind in _NUMBERS if rows.shape[-1] % kind.itemsize == 0)
        blocks = rows.view(whole).transpose(2, 3).contiguous().view(torch.uint8)
    else:
        blocks = rows.transpose(2, 3).contiguous()
    return blocks.view(count, height, width, size * size * channels).permute(0, 3, 1, 2)


def highest_of_neighbours(features: Tensor) -> Tensor:
    """As `nn.MaxPool2d(3, 2, 1)`, with gradients that are summed in a fixed order on a GPU.

    The gradient is shared equally where several neighbours are the maximum.
    """
    framed = functional.pad(features, (1, 1, 1, 1), value=-torch.inf)
    return framed.unfold(2, 3, 2).unfold(3, 3, 2).amax((-2, -1))


def dropped_out(outputs: Tensor, share: float, draws: torch.Generator) -> Tensor:
    """Set a random `share` of the outputs to zero and divide the others by 1 - share, which keeps the mean.

    Drawn on the CPU, so that the draws do not depend on the device.
    Source: Srivastava and others 2014, Dropout.
    """
    kept = torch.rand(outputs.shape, generator=draws) >= share
    return outputs * (kept / (1 - share)).to(outputs)


def q_loss(q_values: Tensor, targets: Tensor, actions: Tensor, kind: str) -> Tensor:
    """The loss, averaged over the batch.

    Args:
        q_values: (N, A) float32, estimates of the network.
        targets: (N, A) float32.
        actions: (N,) int64, actions taken.
        kind: `all-actions`, the squared error summed over the actions (the tutorial's), or `action-taken`, half the
            squared error of the action taken.
    """
    if kind == "all-actions":
        return (q_values - targets).square().sum(1).mean()
    taken = actions[:, None]
    return 0.5 * functional.mse_loss(q_values.gather(1, taken), targets.gather(1, taken))
