"""The entry of a hyperspectral network: a 3-D convolution over bands and space, then a heterogeneous convolution."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from terramoe.errors import ConfigError, DataError
from terramoe.nets.masked import MaskedGroupNorm

CHUNK = 128  # maps at once: thousands of patches would leave the cache, and take four times as long
_LARGEST_GROUPS, _SMALLEST_GROUP = 4, 16  # groups of a norm, channels in one


class HetConv(nn.Module):
    """Grouped 3 x 3 convolution plus pointwise 1 x 1 convolution over all channels, summed.

    Source: HetConv: Heterogeneous Kernel-Based Convolutions for Deep CNNs, 2019, arXiv 1903.04120, in the form that
    Multimodal Fusion Transformer (2023, arXiv 2203.16952) gives it.

    Args:
        channels, channels_out: of the maps.
        groups: most groups of the 3 x 3 convolution; the largest divisor of both channel counts up to it is used.
    """

    def __init__(self, channels: int, channels_out: int, groups: int = 16) -> None:
        super().__init__()
        if min(channels, channels_out, groups) < 1:
            raise ConfigError(
                f"{channels} to {channels_out} channels in {groups} groups",
                where="HetConv",
                fix="use at least 1 of each",
            )
        common = math.gcd(channels, channels_out)
        self.groups = max(g for g in range(1, min(groups, common) + 1) if common % g == 0)
        self.spatial = nn.Conv2d(channels, channels_out, 3, padding=1, groups=self.groups)
        self.pointwise = nn.Conv2d(channels, channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C_out, H, W)."""
        return self.spatial(x) + self.pointwise(x)


class SpectralStem(nn.Module):
    """Maps of many bands -> feature maps of one width: 3-D convolution, norm, ReLU, HetConv, norm, ReLU.

    The 3-D convolution has one input channel and slides over (band, row, column), without padding along the bands. Its
    ``filters`` x (bands - kernel + 1) results become the channels of the second convolution. With fewer bands than
    the kernel it is clipped to the largest odd length that fits, down to 1. A patch of one pixel works as well.

    The source normalises over the batch (batch normalisation). Here it is group normalisation over one map, so that a
    patch's features never depend on its batch mates, in training neither. The price: a gain common to a whole map
    is partly divided out, so standardise bands with statistics of the training set beforehand. Groups hold at least
    16 channels or all of them: a group of one value would come out as 0 whatever went in.

    Args:
        bands: input channels.
        width: output channels.
        filters: channels of the 3-D convolution.
        band_kernel: its length along the bands.
        groups: see ``HetConv``.

    Raises:
        ConfigError: a count below 1, an even kernel.
        DataError: maps of another number of bands.

    Source: Multimodal Fusion Transformer for Remote Sensing Image Classification, 2023, arXiv 2203.16952.
    """

    def __init__(self, bands: int, width: int, *, filters: int = 8, band_kernel: int = 9, groups: int = 16) -> None:
        super().__init__()
        if min(bands, width, filters, band_kernel) < 1 or band_kernel % 2 == 0:
            raise ConfigError(
                f"{bands} bands to {width} channels by {filters} filters of {band_kernel} bands",
                where="SpectralStem",
                fix="use at least 1 of each and an odd kernel",
            )
        self.bands = bands
        kernel = min(band_kernel, bands if bands % 2 else bands - 1)
        channels = filters * (bands - kernel + 1)
        self.spectral = nn.Conv3d(1, filters, (kernel, 3, 3), padding=(0, 1, 1))
        self.spectral_norm = MaskedGroupNorm(_norm_groups(channels), channels)
        self.mix = HetConv(channels, width, groups)
        self.mix_norm = MaskedGroupNorm(_norm_groups(width), width)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """x (B, bands, H, W), valid (B, H, W) bool or None -> (B, width, H, W), 0 where invalid."""
        if x.ndim != 4 or x.shape[1] != self.bands:
            raise DataError(
                f"maps have shape {tuple(x.shape)}, expected (maps, {self.bands}, height, width)",
                where="SpectralStem",
                fix="build the stem with the number of bands of the data",
            )
        if valid is None:
            valid = torch.ones_like(x[:, 0], dtype=torch.bool)
        parts = zip(x.split(CHUNK), valid.split(CHUNK), strict=True)
        return torch.cat([self._features(part, seen) for part, seen in parts])

    def _features(self, x: Tensor, valid: Tensor) -> Tensor:
        x = torch.where(valid[:, None], x, 0)
        x = self.spectral(x[:, None]).flatten(1, 2)  # (B, filters * remaining bands, H, W)
        x = nn.functional.relu(self.spectral_norm(x, valid))
        return nn.functional.relu(self.mix_norm(self.mix(x), valid))


def _norm_groups(channels: int) -> int:
    """The most groups, up to 4, that divide the channels and hold 16 or more of them; 1 where none does."""
    fitting = [g for g in range(1, _LARGEST_GROUPS + 1) if channels % g == 0 and channels // g >= _SMALLEST_GROUP]
    return max(fitting, default=1)
