"""Values as histograms over bins, for a loss that classifies them instead of measuring how far off they are.

Source: Imani and White 2018 (the loss, HL-Gauss); Farebrother and others 2024, Stop Regressing (in Q-learning for
Atari, with these limits and this spread).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

BINS = 101
LIMIT = 10.0  # bins lie between minus and plus this; values beyond count as this
_WIDTH = 2 * LIMIT / BINS
_SPREAD = 0.75 * _WIDTH  # standard deviation about a value


def bin_centers() -> Tensor:
    """The value that each bin stands for: (BINS,) float32."""
    return (torch.arange(BINS) - (BINS - 1) / 2) * _WIDTH


def expected_values(logits: Tensor) -> Tensor:
    """The mean of the histograms with these logits: (N, A, BINS) to (N, A)."""
    values: Tensor = logits.softmax(-1) @ bin_centers().to(logits)
    return values


def histograms(values: Tensor) -> Tensor:
    """The share of each bin in a normal distribution about each value, cut off at the limits: (N,) to (N, BINS)."""
    edges = ((torch.arange(BINS + 1) - BINS / 2) * _WIDTH).to(values)
    below = torch.erf((edges - values.clamp(-LIMIT, LIMIT)[:, None]) / (_SPREAD * math.sqrt(2)))
    shares = below.diff(dim=1)
    return shares / shares.sum(1, keepdim=True)


def cross_entropy(logits: Tensor, values: Tensor) -> Tensor:
    """The cross-entropy of histograms about `values` (N,) and those with logits (N, BINS), averaged over N."""
    return functional.cross_entropy(logits, histograms(values))
