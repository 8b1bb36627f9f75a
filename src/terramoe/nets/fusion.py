"""Top-down fusion of feature maps of several resolutions."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class ResidualConv(nn.Module):
    """Two 3 x 3 convolutions with a residual: (B, C, H, W) -> the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return x + self.second(nn.functional.relu(self.first(nn.functional.relu(x))))


class TopDownFusion(nn.Module):
    """Adds each coarser map, upsampled, to the next finer one, with two residual units a level.

    Source: RefineNet: Multi-Path Refinement Networks for High-Resolution Semantic Segmentation, 2017,
    arXiv 1611.06612 (its residual conv units; without the chained pooling).
    """

    def __init__(self, channels: int, levels: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            nn.Sequential(ResidualConv(channels), ResidualConv(channels)) for _ in range(levels)
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps (B, C, H_l, W_l), finest first -> fused maps of the same shapes."""
        fused: list[Tensor] = []
        for x, refine in zip(reversed(maps), reversed(self.levels), strict=True):
            if fused:
                x = x + nn.functional.interpolate(fused[0], x.shape[-2:], mode="bilinear", align_corners=False)
            fused.insert(0, refine(x))
        return fused
