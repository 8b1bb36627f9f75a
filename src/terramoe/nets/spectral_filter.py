"""Learned filters in the frequency domain: one complex mask along an axis, or a gain per radial band of frequencies.

Both are ``x -> F^-1(mask * F x)``, linear, without a residual path: a mask of 0 removes a frequency. They are computed
as ``x + F^-1((mask - 1) * F x)``, the same function, which at the start (mask 1) gives x back to the last bit.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from terramoe.errors import ConfigError

AXES = {"channels": 1, "height": 2, "width": 3}

_SPATIAL_POINTS = 16
_HIGHEST_RADIUS = math.sqrt(0.5)  # of the frequency (1/2, 1/2), in cycles per pixel


class BandMaskFilter(nn.Module):
    """Learned complex mask between a real Fourier transform and its inverse, along one axis of a map.

    The mask is held at ``points`` frequencies from 0 to 1/2 cycle per step and interpolated linearly, so that maps of
    any size pass. Along the channels all pixels share one mask; along space each channel has its own. Identity at the
    start.

    Args:
        channels: C of the map.
        axis: "channels", "height" or "width".
        points: frequencies that the mask is held at, at least 2. None: as many as the transform of the channels
            has, or 16 along space.

    Raises:
        ConfigError: an unknown axis, a count that is too small.

    Sources: HyperTransXNet, 2025, DOI 10.3390/rs17142361, whose released code follows the transform at once by its
    inverse, without a mask; Global Filter Networks for Image Classification, 2021, arXiv 2107.00645.
    """

    def __init__(self, channels: int, axis: str = "channels", points: int | None = None) -> None:
        super().__init__()
        if axis not in AXES:
            raise ConfigError(f"no axis '{axis}'", where="BandMaskFilter", fix=f"use one of {', '.join(AXES)}")
        self.axis = axis
        if points is None:
            points = max(2, channels // 2 + 1) if axis == "channels" else _SPATIAL_POINTS
        if channels < 1 or points < 2:
            raise ConfigError(
                f"{channels} channels, {points} points",
                where="BandMaskFilter",
                fix="use at least 1 channel and 2 points",
            )
        # mask - 1 as (real, imaginary): some optimisers and file formats know no complex parameters
        self.change = nn.Parameter(torch.zeros(1 if axis == "channels" else channels, points, 2))

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """x (B, C, H, W), valid (B, H, W) bool or None -> the same shape, 0 where invalid."""
        filled = _fill(x, valid)
        along = filled.movedim(AXES[self.axis], -1)
        length = along.shape[-1]
        change = self._change_at(length).unsqueeze(-2)  # (C, 1, frequencies), or (1, 1, frequencies) along the channels
        y = torch.fft.irfft(torch.fft.rfft(along) * change, n=length)
        return _clear((filled + y.movedim(-1, AXES[self.axis])).to(x.dtype), valid)

    def mask(self, length: int) -> Tensor:
        """Complex gain at the frequencies of an axis of that length: (C or 1, length // 2 + 1)."""
        return 1 + self._change_at(length)

    def _change_at(self, length: int) -> Tensor:
        points = self.change.shape[1]
        place = torch.fft.rfftfreq(length, device=self.change.device) * 2 * (points - 1)
        low = place.long().clamp_max(points - 2)
        share = (place - low)[:, None].to(self.change.dtype)
        change = self.change[:, low] * (1 - share) + self.change[:, low + 1] * share
        return torch.view_as_complex(change.to(torch.promote_types(change.dtype, torch.float32)).contiguous())


class RadialFilter(nn.Module):
    """A gain in (0, 2) for each radial band of the plane of frequencies and each group of channels.

    Gain ``2 sigmoid(m)``, m = 0 and so identity at the start. Band b of n holds frequencies whose radius, in cycles
    per pixel, is in [b, b + 1) / n of the largest, sqrt(1/2), whatever the size of the map; the mean is in band 0. A
    layer's own strength s for shared gains is ``x + s * (filter(x) - x)``.

    Args:
        channels: C of the map.
        bands: n.
        groups: of channels, each with gains of its own; must divide ``channels``.

    Raises:
        ConfigError: a count below 1, groups that do not divide the channels.

    Source: the frequency-aware filter of Land-MoE, 2025, arXiv 2505.14088. Reconstruction: the bands, the groups and
    the range of the gain are ours.
    """

    def __init__(self, channels: int, bands: int = 8, groups: int = 1) -> None:
        super().__init__()
        if min(channels, bands, groups) < 1 or channels % groups:
            raise ConfigError(
                f"{channels} channels in {groups} groups with {bands} bands",
                where="RadialFilter",
                fix="use at least 1 of each and groups that divide the channels",
            )
        self.channels, self.bands, self.groups = channels, bands, groups
        self.logit = nn.Parameter(torch.zeros(groups, bands))

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """x (B, C, H, W), valid (B, H, W) bool or None -> the same shape, 0 where invalid."""
        filled = _fill(x, valid)
        change = self.gain()[:, self._band(*x.shape[-2:])] - 1  # (groups, H, W // 2 + 1)
        change = change.repeat_interleave(self.channels // self.groups, 0)
        y = torch.fft.irfft2(torch.fft.rfft2(filled) * change, s=x.shape[-2:])
        return _clear((filled + y).to(x.dtype), valid)

    def gain(self) -> Tensor:
        """(groups, bands), each in (0, 2)."""
        return 2 * torch.sigmoid(self.logit)

    def _band(self, height: int, width: int) -> Tensor:
        """(H, W // 2 + 1) int64: the band of each frequency of the real transform."""
        device = self.logit.device
        rows, columns = torch.fft.fftfreq(height, device=device), torch.fft.rfftfreq(width, device=device)
        radius = torch.hypot(rows[:, None], columns) / _HIGHEST_RADIUS
        # a little more, so that rounding does not part frequencies that lie on the border of two bands
        return (radius * self.bands + 1e-5).long().clamp_max(self.bands - 1)


def _fill(x: Tensor, valid: Tensor | None) -> Tensor:
    """Float32 or better, invalid pixels set to the mean of the map's valid ones: 0 would be an edge that rings."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if valid is None:
        return x
    keep = valid[:, None]
    total = torch.where(keep, x, 0).sum((2, 3), keepdim=True)
    return torch.where(keep, x, total / keep.sum((2, 3), keepdim=True).clamp_min(1))


def _clear(y: Tensor, valid: Tensor | None) -> Tensor:
    return y if valid is None else torch.where(valid[:, None], y, 0)
