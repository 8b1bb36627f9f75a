"""Texture without learned weights: edge filters, and statistics that say how busy a patch is."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

BINS = 8  # of the histogram behind the entropy
RANGE = 3.0  # it reaches so far to either side of 0, in units of standardised bands

_SOBEL = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 8
_LAPLACE = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]]) / 4
EDGE_KERNELS = torch.stack([_SOBEL, _SOBEL.T, _LAPLACE])  # slope along columns, along rows, centre against neighbours


def edge_responses(x: Tensor, valid: Tensor) -> Tensor:
    """Every channel through three fixed filters: (N, C, H, W), valid (N, H, W) bool -> (N, 3 C, H, W).

    Sobel along columns, Sobel along rows (both as slope per pixel) and Laplace (mean of four neighbours minus the
    pixel), channel by channel: c0 filters 0 1 2, c1 ... . 0 where one of the nine pixels is unknown or outside: the
    border of the data is no edge. What stands in an invalid pixel, NaN too, changes nothing.
    """
    batch, channels, height, width = x.shape
    if min(height, width) < 3:
        return x.new_zeros(batch, len(EDGE_KERNELS) * channels, height, width)
    x = torch.where(valid[:, None], x, 0)
    kernels = EDGE_KERNELS.to(x)[:, None]
    found = nn.functional.conv2d(x.reshape(-1, 1, height, width), kernels).view(batch, -1, height - 2, width - 2)
    whole = nn.functional.avg_pool2d(valid[:, None].to(x.dtype), 3, stride=1) > 1 - 0.5 / 9
    return nn.functional.pad(found * whole, (1, 1, 1, 1))


def texture_statistics(x: Tensor, valid: Tensor) -> Tensor:
    """How busy a patch is: x (N, C, H, W) of standardised bands, valid (N, H, W) bool -> (N, 3).

    Over valid pixels: the standard deviation, the gradient energy (mean squared step to the next pixel, along rows
    and columns), both averaged over the bands, and the entropy of the histogram of the bands' mean, as a share of
    its maximum (without gradient). 0 without a valid pixel. Completion of the texture context of AMoFE, of which the
    survey names no formula.
    """
    keep = valid[:, None].to(x.dtype)
    x = torch.where(valid[:, None], x, 0)
    mean = _mean(x, keep)[:, :, None, None]
    spread = (_mean((x - mean).square(), keep) + 1e-12).sqrt().mean(1)
    steps = [_mean(step.square(), both) for step, both in (_steps(x, keep, 2), _steps(x, keep, 3))]
    energy = (0.5 * (steps[0] + steps[1])).mean(1)
    known = keep.sum((1, 2, 3)) > 0
    return torch.stack([spread * known, energy, _entropy(x.detach().mean(1), keep[:, 0])], dim=1)


def _mean(x: Tensor, keep: Tensor) -> Tensor:
    """Over the pixels that keep (N, 1, H, W) names: (N, C, H, W) -> (N, C), 0 without any."""
    return (x * keep).sum((2, 3)) / keep.sum((2, 3)).clamp_min(1)


def _steps(x: Tensor, keep: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Differences of neighbours along a dimension, and where both are known."""
    size = x.shape[dim] - 1
    return x.diff(dim=dim), keep.narrow(dim, 1, size) * keep.narrow(dim, 0, size)


def _entropy(x: Tensor, keep: Tensor) -> Tensor:
    """x, keep (N, H, W) -> (N,), in 0..1."""
    place = ((x + RANGE) * (BINS / (2 * RANGE))).long().clamp(0, BINS - 1)
    counts = x.new_zeros(x.shape[0], BINS).scatter_add(1, place.flatten(1), keep.flatten(1))
    share = counts / counts.sum(1, keepdim=True).clamp_min(1)
    return torch.special.entr(share).sum(1) / math.log(BINS)
