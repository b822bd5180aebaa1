"""Figures of a network: the outputs of its convolutions for a state, and their weights."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from torch import nn

from dqn.envs.observations import channel_names, motion
from dqn.learning.networks import QNetwork
from dqn.plots.figures import bare, new_figure

_GAP = 0.06  # between the images of a grid, relative to an image
_PITCH = 1 + _GAP


def convolutions(network: QNetwork) -> list[nn.Conv2d]:
    """The convolutions of a network, in the order in which they are applied."""
    return [layer for layer in network.convolutions.modules() if isinstance(layer, nn.Conv2d)]


@torch.no_grad()
def convolution_outputs(network: QNetwork, state: np.ndarray) -> dict[int, np.ndarray]:
    """Outputs of the convolutions for one state, after their ReLU.

    The last convolution of a residual block has no ReLU of its own, so it is not included.

    Args:
        network: on any device.
        state: (105, 80, C) uint8.

    Returns:
        (channels, height, width) float32, by number of the convolution, from 1.
    """
    outputs: dict[int, np.ndarray] = {}
    hooks, number = [], 0
    for layer in network.convolutions.modules():
        number += isinstance(layer, nn.Conv2d)
        if isinstance(layer, nn.ReLU):
            hooks.append(layer.register_forward_hook(partial(_keep, outputs, number)))
    try:
        network(torch.from_numpy(state[None]).to(next(network.parameters()).device))
    finally:
        for hook in hooks:
            hook.remove()
    return outputs


def _keep(
    outputs: dict[int, np.ndarray], number: int, _layer: nn.Module, _inputs: object, output: torch.Tensor
) -> None:
    outputs[number] = output[0].float().cpu().numpy()


def outputs_figure(state: np.ndarray, outputs: np.ndarray, layer: int, layers: int, game: str) -> Figure:
    """The output channels of a convolution on one color scale, beside the state.

    Args:
        state: (105, 80, C) uint8.
        outputs: (channels, height, width), not negative.
        layer: number of the convolution, from 1.
        layers: number of convolutions of the network.
        game: title of the game.
    """
    channels, height, width = outputs.shape
    columns = _columns(channels, height / width)
    size = f"{channels} channels of {height} by {width}"
    figure = new_figure(11, 5.6, f"{game}: output of convolution {layer} of {layers} ({size})")
    left, right = np.asarray(figure.subfigures(1, 2, width_ratios=[1, 5.2]))
    frame, trace = left.subplots(2, 1)
    bare(frame).imshow(state[..., 0], cmap="gray", vmin=0, vmax=255)
    frame.set_title("frame", fontsize=9)
    bare(trace).imshow(motion(state), cmap="magma", vmin=0, vmax=255)
    trace.set_title("motion", fontsize=9)
    top = max(float(np.percentile(outputs, 99.8)), 1e-6)
    axes = right.subplots()
    image = _draw_grid(axes, outputs, columns, cmap="viridis", vmin=0, vmax=top)
    bar = right.colorbar(image, ax=axes, shrink=0.6, aspect=30, pad=0.015)
    bar.set_label("activation after ReLU", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    return figure


def weights_figure(network: QNetwork, layer: int, channel: int, game: str) -> Figure:
    """The weights of a convolution for one input channel; zero is white.

    Args:
        network: on any device.
        layer: number of the convolution, from 1.
        channel: number of the input channel, from 0.
        game: title of the game.

    Raises:
        ValueError: `layer` or `channel` is out of range.
    """
    found = convolutions(network)
    if not 1 <= layer <= len(found):
        raise ValueError(f"convolution is {layer}; it must be from 1 to {len(found)} for this network")
    weights = found[layer - 1].weight.detach().float().cpu().numpy()
    if not 0 <= channel < weights.shape[1]:
        raise ValueError(
            f"channel is {channel}; it must be from 0 to {weights.shape[1] - 1}, the input channels of convolution "
            f"{layer}"
        )
    filters = weights[:, channel]
    columns = _columns(len(filters), 1.0)
    rows = math.ceil(len(filters) / columns)
    name = f"input channel {channel}" + (f" ({channel_names(weights.shape[1])[channel]})" if layer == 1 else "")
    figure = new_figure(10, 1.3 + 7.6 * rows / columns, f"{game}: weights of convolution {layer} for {name}")
    top = float(np.abs(filters).max()) or 1e-6
    axes = figure.subplots()
    image = _draw_grid(axes, filters, columns, cmap="RdBu_r", vmin=-top, vmax=top)
    axes.set_aspect("equal")
    for column, row in _cells(len(filters), columns):
        axes.add_patch(Rectangle((column, row), 1, 1, fill=False, color="#c4c8d0", lw=0.6, clip_on=False))
    bar = figure.colorbar(image, ax=axes, shrink=0.7, aspect=30, pad=0.015)
    bar.set_label(f"weight (mean {filters.mean():+.4f}, sd {filters.std():.4f})", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    return figure


def _draw_grid(axes: Axes, images: np.ndarray, columns: int, **style: Any) -> AxesImage:
    """Draw images (N, height, width) in a grid of `columns` columns, with gaps, and return one of them.

    All are drawn in the same axes, because axes of their own would take ten times as long.
    """
    for image, (column, row) in zip(images, _cells(len(images), columns), strict=True):
        drawn = axes.imshow(image, extent=(column, column + 1, row + 1, row), aspect="auto", **style)
    bare(axes)
    axes.set_xlim(0, columns * _PITCH - _GAP)
    axes.set_ylim(math.ceil(len(images) / columns) * _PITCH - _GAP, 0)
    return drawn


def _cells(count: int, columns: int) -> list[tuple[float, float]]:
    """The left and the top edge of each of `count` cells of width and height 1 in a grid with gaps."""
    return [(number % columns * _PITCH, number // columns * _PITCH) for number in range(count)]


def _columns(count: int, shape: float) -> int:
    """Columns of a landscape grid of `count` images of height / width `shape`, without empty cells if possible."""
    wanted = math.sqrt(count * 1.9 * shape)
    columns = min((number for number in range(1, count + 1) if count % number == 0), key=lambda n: abs(n - wanted))
    return columns if wanted / 1.6 < columns < wanted * 1.6 else math.ceil(wanted)
