"""The networks that estimate Q-values from states."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import skip_init

from dqn.config import TrainConfig
from dqn.envs.observations import STATE_HEIGHT, STATE_WIDTH
from dqn.randomness import torch_generator


@dataclass(frozen=True)
class _Convolution:
    channels: int
    kernel: int
    stride: int
    padding: int = 0
    pooled: bool = False  # see _Pool
    residual_blocks: int = 0


@dataclass(frozen=True)
class _Architecture:
    convolutions: tuple[_Convolution, ...]
    dense: tuple[int, ...]
    same_padding: bool  # as TensorFlow pads: the output has ceil(size / stride) pixels
    truncated_normal: float  # standard deviation of all weights; 0 means scaled to each layer's inputs


_ARCHITECTURES = {
    "tutorial": _Architecture(
        (_Convolution(16, 3, 2), _Convolution(32, 3, 2), _Convolution(64, 3, 1)),
        (1024, 1024, 1024, 1024),
        same_padding=True,
        truncated_normal=0.02,
    ),
    # Mnih and others 2013
    "nips": _Architecture(
        (_Convolution(16, 8, 4), _Convolution(32, 4, 2)),
        (256,),
        same_padding=False,
        truncated_normal=0.0,
    ),
    # Mnih and others 2015
    "nature": _Architecture(
        (_Convolution(32, 8, 4), _Convolution(64, 4, 2), _Convolution(64, 3, 1)),
        (512,),
        same_padding=False,
        truncated_normal=0.0,
    ),
    # The tutorial's convolutions with longer strides and one dense layer: 1.0 million parameters for 4
    # actions, and a third of the multiplications of `nature`.
    "small": _Architecture(
        (_Convolution(16, 3, 3), _Convolution(32, 3, 2), _Convolution(64, 3, 2)),
        (384,),
        same_padding=False,
        truncated_normal=0.0,
    ),
    # Of IMPALA's network (Espeholt and others 2018) two sections in place of three, a residual block in each
    # in place of two, and at first a stride in place of a section's first pool.
    "residual": _Architecture(
        (
            _Convolution(16, 4, 2, pooled=True, residual_blocks=1),
            _Convolution(32, 3, 1, padding=1, pooled=True, residual_blocks=1),
        ),
        (256,),
        same_padding=False,
        truncated_normal=0.0,
    ),
}


class _PixelConvolution(nn.Conv2d):
    """The first convolution, over pixels (N, C, height, width) uint8 that lie channels last.

    Where the stride divides the kernel it is computed as one of stride 1 over blocks of stride by
    stride pixels, which is the same sum over more channels, and processors do that several times faster.
    Pixels can be divided by 255, which is done to the weights: they are fewer.
    """

    scale_input = False

    def forward(self, pixels: Tensor) -> Tensor:
        weight = self.weight / 255 if self.scale_input else self.weight
        kernel, stride = self.kernel_size[0], self.stride[0]
        if kernel % stride:
            outputs: Tensor = self._conv_forward(pixels.to(weight.dtype), weight, self.bias)
            return outputs
        return functional.conv2d(_blocks(pixels, stride).to(weight.dtype), _blocks(weight, stride), self.bias)


_NUMBERS = (torch.int64, torch.int32, torch.int16, torch.uint8)


def _blocks(pixels: Tensor, size: int) -> Tensor:
    """(N, C, h, w) as (N, size · size · C, h // size, w // size), a ragged rest cut off, channels last."""
    count, channels, height, width = pixels.shape
    height, width = height // size, width // size
    rows = pixels.permute(0, 2, 3, 1)[:, : height * size, : width * size].reshape(count, height, size, width, -1)
    # A row of a block is moved as few numbers of many bytes. Compiled code does not need that, and inductor of torch
    # 2.11 fails to lower the views.
    if pixels.dtype == torch.uint8 and not torch.compiler.is_compiling():
        whole = next(kind for kind in _NUMBERS if rows.shape[-1] % kind.itemsize == 0)
        blocks = rows.view(whole).transpose(2, 3).contiguous().view(torch.uint8)
    else:
        blocks = rows.transpose(2, 3).contiguous()
    return blocks.view(count, height, width, size * size * channels).permute(0, 3, 1, 2)


def _activation(channels: int, normalize: bool) -> list[nn.Module]:
    """What stands behind a convolution: ReLU, with normalization before it."""
    return [*([nn.GroupNorm(1, channels)] if normalize else []), nn.ReLU(inplace=True)]


class _Pool(nn.MaxPool2d):
    """Of 3 by 3 outputs the highest, at every second row and column."""

    def forward(self, features: Tensor) -> Tensor:
        if features.is_cuda:
            return highest_of_neighbours(features)
        pooled: Tensor = super().forward(features)
        return pooled


def highest_of_neighbours(features: Tensor) -> Tensor:
    """As `nn.MaxPool2d(3, 2, 1)`, whose gradients on a GPU are added up in no fixed order; these are.

    Where several are the highest they share the gradient.
    """
    framed = functional.pad(features, (1, 1, 1, 1), value=-torch.inf)
    return framed.unfold(2, 3, 2).unfold(3, 3, 2).amax((-2, -1))


class ResidualBlock(nn.Sequential):
    """Two convolutions, each behind its ReLU, that are added to their input (He and others 2016, Identity Mappings)."""

    def __init__(self, channels: int, normalize: bool) -> None:
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [*_activation(channels, normalize), _bare(nn.Conv2d, channels, channels, 3, 1, 1)]
        if not normalize:
            layers[0] = nn.ReLU()  # not in place: its input is needed again
        super().__init__(*layers)

    def forward(self, features: Tensor) -> Tensor:
        """Features (N, C, h, w) to as many."""
        added: Tensor = super().forward(features)  # type: ignore[no-untyped-call]
        return features + added


class QNetwork(nn.Module):
    """States (N, 105, 80, C) uint8 to Q-values (N, A) float32.

    With normalization, every hidden layer is normalized before its ReLU, convolutions over channels
    and space together (Ba, Kiros and Hinton 2016; its use in place of a target network: Gallici and
    others 2024, Parallel Q-Network).
    """

    def __init__(self, config: TrainConfig, actions: int) -> None:
        super().__init__()
        architecture = _ARCHITECTURES[config.network]
        self._dropout = config.dropout
        self.state_shape = height, width, channels = STATE_HEIGHT, STATE_WIDTH, config.state_channels
        layers: list[nn.Module] = []
        for convolution in architecture.convolutions:
            kernel, stride = convolution.kernel, convolution.stride
            if architecture.same_padding:
                padding = (*_same_padding(width, kernel, stride), *_same_padding(height, kernel, stride))
                layers.append(nn.ZeroPad2d(padding))
                height, width = -(-height // stride), -(-width // stride)
            else:
                around = 2 * convolution.padding - kernel
                height, width = (height + around) // stride + 1, (width + around) // stride + 1
            kind = nn.Conv2d if convolution is not architecture.convolutions[0] else _PixelConvolution
            layers.append(_bare(kind, channels, convolution.channels, kernel, stride, convolution.padding))
            if isinstance(layers[-1], _PixelConvolution):
                layers[-1].scale_input = config.scale_input
            channels = convolution.channels
            if convolution.pooled:
                layers.append(_Pool(3, 2, 1))
                height, width = -(-height // 2), -(-width // 2)
            layers += [ResidualBlock(channels, config.normalize) for _ in range(convolution.residual_blocks)]
            if not convolution.residual_blocks or convolution is architecture.convolutions[-1]:
                layers += _activation(channels, config.normalize)
        self.convolutions = nn.Sequential(*layers)
        self.convolutions.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        features, layers = channels * height * width, []
        for units in architecture.dense:
            layers.append(_bare(nn.Linear, features, units))
            if config.normalize:
                layers.append(nn.LayerNorm(units))
            layers.append(nn.ReLU(inplace=True))
            features = units
        self.dense = nn.Sequential(*layers, _bare(nn.Linear, features, actions))
        self._initialize(architecture, torch_generator(config.seed, "weights"))

    def forward(self, states: Tensor, dropout_draws: torch.Generator | None = None) -> Tensor:
        """Estimate Q-values (N, A) float32 of states (N, 105, 80, C) uint8; with draws, hidden outputs are dropped."""
        assert states.dtype == torch.uint8 and states.shape[1:] == self.state_shape
        features = self.convolutions(states.permute(0, 3, 1, 2))
        # Flattened pixel by pixel, the order they lie in memory.
        hidden = features.permute(0, 2, 3, 1).flatten(1)
        for layer in self.dense[:-1].children():
            hidden = layer(hidden)
            if dropout_draws is not None and isinstance(layer, nn.ReLU):
                hidden = dropped_out(hidden, self._dropout, dropout_draws)
        q_values: Tensor = self.dense[-1](hidden.to(self.dense[-1].weight.dtype))
        return q_values

    def in_bfloat16(self) -> QNetwork:
        """A copy that computes in bfloat16, but for its last layer, which is this one's own.

        The Q-values of actions differ by less than bfloat16 can tell apart: at 2 its steps are 1/64.
        """
        twin = copy.deepcopy(self).to(torch.bfloat16)
        twin.dense[-1] = self.dense[-1]
        return twin

    @torch.no_grad()
    def _initialize(self, architecture: _Architecture, generator: torch.Generator) -> None:
        spread = architecture.truncated_normal
        for layer in self.modules():
            if not isinstance(layer, nn.Conv2d | nn.Linear):
                continue
            if spread:
                nn.init.trunc_normal_(layer.weight, std=spread, a=-2 * spread, b=2 * spread, generator=generator)
            else:
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)


def dropped_out(outputs: Tensor, share: float, draws: torch.Generator) -> Tensor:
    """Outputs with a random `share` of them zero and the rest larger, so that their mean stays.

    Drawn on the CPU, so that the draws are the same wherever the network is.
    Source: Srivastava and others 2014, Dropout.
    """
    kept = torch.rand(outputs.shape, generator=draws) >= share
    return outputs * (kept / (1 - share)).to(outputs)


def _bare(kind: type[nn.Module], *sizes: int) -> nn.Module:
    """A layer without torch's own initial weights, which would draw from its global generator."""
    layer: nn.Module = skip_init(kind, *sizes)  # type: ignore[no-untyped-call]
    return layer


def _same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def q_loss(q_values: Tensor, targets: Tensor, actions: Tensor, kind: str) -> Tensor:
    """The loss of estimates and targets (N, A) with the actions taken (N,), averaged over N.

    `all-actions`: squared error summed over the actions (the tutorial).
    `action-taken`: half the squared error of the action taken.
    """
    if kind == "all-actions":
        return (q_values - targets).square().sum(1).mean()
    taken = actions[:, None]
    return 0.5 * functional.mse_loss(q_values.gather(1, taken), targets.gather(1, taken))
