"""Where prediction windows lie and how they are blended."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


def starts(length: int, window: int, stride: int) -> list[int]:
    """First pixels of the windows that cover ``length`` pixels; the last window ends with the raster."""
    last = max(length - window, 0)
    return [*range(0, last, stride), last]


def blend_weights(window: int, overlap: int) -> np.ndarray:
    """(window, window) float64: a raised cosine, highest in the middle, above 0 at the edge; ones without overlap."""
    if overlap == 0:
        return np.ones((window, window))
    phase = (np.arange(window) + 0.5) / window
    profile = np.sin(np.pi * phase) ** 2
    return profile[:, None] * profile


@dataclass(frozen=True)
class Box:
    """A rectangle of pixels: rows row..row + height - 1, columns likewise."""

    row: int
    column: int
    height: int
    width: int

    def grown(self, reach: int) -> Box:
        """The box and ``reach`` pixels more on each side."""
        return Box(self.row - reach, self.column - reach, self.height + 2 * reach, self.width + 2 * reach)

    def within(self, outer: Box) -> tuple[slice, slice]:
        """Slices of this box in an array that holds ``outer``, cut to it."""
        top, left = max(self.row, outer.row), max(self.column, outer.column)
        bottom = min(self.row + self.height, outer.row + outer.height)
        right = min(self.column + self.width, outer.column + outer.width)
        return slice(top - outer.row, bottom - outer.row), slice(left - outer.column, right - outer.column)


def tiles(height: int, width: int, size: int) -> Iterator[Box]:
    """Boxes of at most ``size`` x ``size`` pixels that cover the raster once, in reading order."""
    for row in range(0, height, size):
        for column in range(0, width, size):
            yield Box(row, column, min(size, height - row), min(size, width - column))


def touching(tile: Box, height: int, width: int, window: int, stride: int) -> list[Box]:
    """The windows of the raster's own grid that share a pixel with the tile, in reading order.

    The grid belongs to the raster, not to the tile: two tiles that share a window compute the same values for it.
    """
    rows = [r for r in starts(height, window, stride) if r < tile.row + tile.height and r + window > tile.row]
    columns = [c for c in starts(width, window, stride) if c < tile.column + tile.width and c + window > tile.column]
    return [Box(r, c, window, window) for r in rows for c in columns]
