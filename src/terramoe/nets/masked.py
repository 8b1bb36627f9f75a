"""Normalisation and pooling that leave nodata out, so that an invalid pixel harms nobody but itself."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class MaskedGroupNorm(nn.Module):
    """Group normalisation with mean and variance over valid pixels only; invalid pixels come out as 0.

    Equal to ``torch.nn.GroupNorm`` where all pixels are valid. Source: Group Normalization, 2018, arXiv 1803.08494.
    """

    def __init__(self, groups: int, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.groups, self.eps = groups, eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """x (B, C, H, W), valid (B, H, W) bool -> (B, C, H, W)."""
        keep = valid[:, None].to(x.dtype)
        count = (keep.sum((1, 2, 3)) * (x.shape[1] // self.groups)).clamp_min(1)[:, None, None, None, None]
        grouped = (x * keep).unflatten(1, (self.groups, -1))
        mean = grouped.sum((2, 3, 4), keepdim=True) / count
        centred = (x.unflatten(1, (self.groups, -1)) - mean) * keep[:, :, None]
        variance = centred.square().sum((2, 3, 4), keepdim=True) / count
        y = (centred * torch.rsqrt(variance + self.eps)).flatten(1, 2)
        return (y * self.weight[:, None, None] + self.bias[:, None, None]) * keep


def masked_mean(x: Tensor, valid: Tensor) -> Tensor:
    """Mean over valid pixels, 0 where there is none: x (B, C, H, W), 0 where invalid, valid (B, H, W) -> (B, C)."""
    return x.sum((2, 3)) / valid.sum((1, 2)).clamp_min(1)[:, None]


def masked_average_pool(x: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """2 x 2 average over valid pixels; a cell is valid where any of its pixels is.

    x (B, C, H, W), valid (B, H, W) -> (B, C, H // 2, W // 2) and (B, H // 2, W // 2). An odd last line is dropped.
    """
    keep = valid[:, None].to(x.dtype)
    share = nn.functional.avg_pool2d(keep, 2)
    pooled = nn.functional.avg_pool2d(x * keep, 2)
    return pooled / share.clamp_min(0.25), share[:, 0] > 0
