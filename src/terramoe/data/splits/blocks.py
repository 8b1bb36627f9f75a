"""Square blocks of pixels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from terramoe.data.splits.split import RasterFolds, Split, check_raster, deal, folds_of
from terramoe.errors import SplitError

BOOTSTRAP_BLOCK = 12  # side in pixels of what counts as independent where a split has no blocks of its own


@dataclass(frozen=True)
class BlockSplit(RasterFolds):
    """Square blocks, dealt to the folds so that each class is spread as evenly as possible.

    Every labelled pixel is tested once over the folds. A pixel trains in a fold if it lies more than ``guard`` pixels
    (the larger of row and column distance) from every test pixel of that fold.

    Args:
        n_splits: folds. block: side of a block, in pixels. guard: width of the band, in pixels.
        seed: breaks ties in the dealing.
    """

    n_splits: int = 3
    block: int = 12
    guard: int = 2
    seed: int = 0

    def masks(self, labels: np.ndarray) -> Iterator[Split]:
        """Labels (H, W) -> one Split a fold; SplitError if there are fewer labelled blocks than folds."""
        check_raster(labels, self.n_splits, self.guard)
        if self.block < 1:
            raise SplitError(f"block is {self.block}", where="BlockSplit", fix="use at least 1 pixel")
        blocks = block_ids(labels.shape, self.block)
        fold = deal(labels, blocks, self.n_splits, self.seed)[blocks]
        yield from folds_of("block", labels, fold, self.n_splits, self.guard, blocks)


def block_ids(shape: tuple[int, int], block: int) -> np.ndarray:
    """(H, W) int64: the number of the square block that holds each pixel, in reading order."""
    rows, columns = (np.arange(size) // block for size in shape)
    return rows[:, None] * (columns[-1] + 1) + columns
