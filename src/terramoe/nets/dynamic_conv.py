"""A depthwise convolution whose kernel is made for each map from the map itself."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from terramoe.errors import ConfigError


class DynamicDepthwiseConv(nn.Module):
    """Depthwise convolution by a mixture of K learned kernels; each map has its own weights, which sum to 1.

    The map is averaged over a grid as large as the kernel; 1 x 1 convolution, GELU and 1 x 1 convolution turn each
    cell into K scores per channel; their softmax mixes the kernels at that place of the kernel. Only valid pixels are
    averaged; a cell without any counts as 0.

    Args:
        channels: C.
        kernels: K.
        size: side of the kernel, odd.
        reduction: hidden width is ``channels // reduction``, at least 1.

    Raises:
        ConfigError: a count below 1, an even size.

    Source: the input-dependent convolution (IDConv) of TransXNet, 2023, arXiv 2310.19380. There a batch normalisation
    stands before the GELU; it is left out, because it would let batch mates change each other's kernels.
    """

    def __init__(self, channels: int, kernels: int = 4, size: int = 3, reduction: int = 4) -> None:
        super().__init__()
        if min(channels, kernels, size, reduction) < 1 or size % 2 == 0:
            raise ConfigError(
                f"{kernels} kernels of size {size} for {channels} channels, reduction {reduction}",
                where="DynamicDepthwiseConv",
                fix="use at least 1 of each and an odd size",
            )
        self.kernels, self.size = kernels, size
        hidden = max(1, channels // reduction)
        self.score = nn.Sequential(nn.Conv2d(channels, hidden, 1), nn.GELU(), nn.Conv2d(hidden, kernels * channels, 1))
        self.weight = nn.Parameter(torch.empty(kernels, channels, size, size).uniform_(-1 / size, 1 / size))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """x (B, C, H, W), valid (B, H, W) bool or None -> the same shape, 0 where invalid."""
        if valid is not None:
            x = torch.where(valid[:, None], x, 0)
        kernel = self.kernel(x, valid)
        # One convolution with B * C groups; the offset is added apart, since all maps share it.
        groups = x.shape[0] * x.shape[1]
        y = F.conv2d(x.flatten(0, 1)[None], kernel.flatten(0, 1)[:, None], padding=self.size // 2, groups=groups)
        y = y.view_as(x) + self.bias[:, None, None]
        return y if valid is None else torch.where(valid[:, None], y, 0)

    def kernel(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """The maps' kernels (B, C, size, size). Invalid pixels of x must be 0."""
        pooled = F.adaptive_avg_pool2d(x, self.size)
        if valid is not None:
            share = F.adaptive_avg_pool2d(valid[:, None].to(x.dtype), self.size)
            pooled = torch.where(share > 0, pooled / share.clamp_min(torch.finfo(x.dtype).tiny), 0)
        attention = self.score(pooled).unflatten(1, (self.kernels, -1)).softmax(1)  # (B, K, C, size, size)
        return (attention * self.weight).sum(1)
