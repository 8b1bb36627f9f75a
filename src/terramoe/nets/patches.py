"""Patches around pixels: how a network that classifies one patch at a time sees a whole image.

A pixel's prediction depends on the p x p pixels around it and on nothing else, so predictions do not depend on how the
image is cut, and a scene's border and its nodata look alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Patches:
    """The patches around N pixels of B images.

    Attributes:
        values: (N, C, p, p), 0 where there is no data.
        valid: (N, p, p) bool.
        pixel: (N,) int64: which pixel of the B * H * W each one is around.
        size: (B, H, W).
        present: (N, S) bool: which sensors the pixel has, or None where the batch does not say.
    """

    values: Tensor
    valid: Tensor
    pixel: Tensor
    size: tuple[int, int, int]
    present: Tensor | None = None

    @property
    def routed(self) -> Tensor:
        """(N,) bool: whether the pixel itself has data; the mask for a router over patches."""
        centre = self.valid.shape[-1] // 2
        return self.valid[:, centre, centre]

    def to_image(self, values: Tensor) -> Tensor:
        """(N, C) -> (B, C, H, W), 0 at all other pixels."""
        batch, height, width = self.size
        flat = values.new_zeros(batch * height * width, values.shape[1]).index_copy(0, self.pixel, values)
        return flat.view(batch, height, width, -1).permute(0, 3, 1, 2)

    def of_batch(self, values: Tensor) -> Tensor:
        """(B, H, W) -> (N,): what another key of the batch says of these pixels."""
        return values.flatten()[self.pixel]

    def layout(self, items: int = 1, show: int = 0) -> PatchLayout:
        """Where the items of a routing lie that has ``items`` per patch, of which a map can show one."""
        return PatchLayout(self.pixel, self.size, items, show)


@dataclass(frozen=True)
class PatchLayout:
    """Lays the items of patches on the pixels that they are around; -1 at all other pixels.

    Attributes:
        pixel, size: see ``Patches``.
        items: items per patch, in the order of the patches.
        show: the item of each patch that is shown.
    """

    pixel: Tensor
    size: tuple[int, int, int]
    items: int = 1
    show: int = 0

    def to_pixels(self, values: Tensor) -> Tensor:
        """(N * items, ...) -> (B, H, W, ...)."""
        batch, height, width = self.size
        shown = values.view(-1, self.items, *values.shape[1:])[:, self.show]
        flat = values.new_full((batch * height * width, *values.shape[1:]), -1)
        return flat.index_copy(0, self.pixel, shown).view(batch, height, width, *values.shape[1:])


def patches_of(batch: Mapping[str, Tensor], side: int) -> Patches:
    """The patches around the pixels of ``wanted`` that have data, or around every pixel with data.

    Where there is none, one patch without data, around the first pixel: networks then need no special case.

    Args:
        batch: ``image`` (B, C, H, W); optionally ``valid`` and ``wanted`` (B, H, W) bool, ``available`` (B, S, H, W).
        side: p, odd.
    """
    image = batch["image"]
    count, channels, height, width = image.shape
    valid = batch["valid"] if "valid" in batch else torch.ones_like(image[:, 0], dtype=torch.bool)
    pixel = (valid & batch["wanted"] if "wanted" in batch else valid).flatten().nonzero().squeeze(1)
    if pixel.numel() == 0:
        pixel = pixel.new_zeros(1)
    present = None
    if "available" in batch:
        present = batch["available"].permute(0, 2, 3, 1).flatten(0, 2)[pixel]
    reach = side // 2
    wide = width + 2 * reach
    # Pixels as rows: one look-up then moves all channels of a pixel.
    rows = nn.functional.pad(torch.where(valid[:, None], image, 0), (reach,) * 4).permute(0, 2, 3, 1).flatten(0, 2)
    known = nn.functional.pad(valid, (reach,) * 4).flatten()
    number, place = pixel // (height * width), pixel % (height * width)
    first = (number * (height + 2 * reach) + place // width) * wide + place % width
    steps = torch.arange(side, device=pixel.device)
    where = first[:, None, None] + steps[:, None] * wide + steps
    values = rows[where.flatten()].view(*where.shape, channels).permute(0, 3, 1, 2)
    return Patches(values, known[where], pixel, (count, height, width), present)
