"""The strong view of an image: changed at random in all that does not decide its class.

For losses that ask a network to say of the strong view what it says of the image as it is: FixMatch: Simplifying
Semi-Supervised Learning with Consistency and Confidence, 2020, arXiv 2001.07685. The changes are ours; they suit
any number of bands.
"""

from __future__ import annotations

import torch
from torch import Tensor

GAIN, OFFSET, NOISE = 0.2, 0.2, 0.1  # in standard deviations of a band
HOLE = 0.3  # share of the side


def strong_view(values: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Square images (N, bands, p, p), 0 where ``valid`` (N, p, p) is False, -> others of the same shapes.

    A quarter turn or mirror image, gain and offset of each band, noise, and a square that loses its data. Bands are
    taken to be standardised. Draws from torch's global generator.
    """
    count, bands, side = values.shape[:3]
    draw = {"device": values.device}
    x = torch.cat([values, valid[:, None].to(values.dtype)], dim=1)
    x = torch.where(torch.rand(count, 1, 1, 1, **draw) < 0.5, x.flip(-1), x)
    turned = torch.stack([x.rot90(turn, (-2, -1)) for turn in range(4)])
    x = turned[torch.randint(4, (count,), **draw), torch.arange(count, **draw)]
    values, valid = x[:, :bands], x[:, bands] > 0
    hole = round(HOLE * side)
    steps, first = torch.arange(side, **draw), torch.randint(side - hole + 1, (2, count, 1), **draw)
    inside = (steps >= first) & (steps < first + hole)
    valid = valid & ~(inside[0][:, :, None] & inside[1][:, None, :])
    gain = 1 + GAIN * torch.randn(count, bands, 1, 1, **draw)
    offset = OFFSET * torch.randn(count, bands, 1, 1, **draw)
    changed = values * gain + offset + NOISE * torch.randn(values.shape, **draw)
    return torch.where(valid[:, None], changed, 0), valid
