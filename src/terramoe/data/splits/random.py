"""Random pixels: a control that leaks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from terramoe.data.splits.blocks import BOOTSTRAP_BLOCK, block_ids
from terramoe.data.splits.split import RasterFolds, Split, check_raster
from terramoe.errors import SplitError


@dataclass(frozen=True)
class RandomSplit(RasterFolds):
    """Random pixels of each class: the usual protocol of the field, and a leak. A control, never a headline.

    Args:
        n_splits: repetitions. train_size: share of each class that trains (at least one pixel).
        seed: of the draw.
    """

    n_splits: int = 3
    train_size: float = 0.1
    seed: int = 0

    def masks(self, labels: np.ndarray) -> Iterator[Split]:
        """Labels (H, W) -> one Split a repetition; the rest of the labelled pixels test."""
        check_raster(labels, self.n_splits, 0)
        if not 0 < self.train_size < 1:
            raise SplitError(f"train_size is {self.train_size}", where="RandomSplit", fix="use a share between 0 and 1")
        for fold in range(self.n_splits):
            generator = np.random.default_rng([self.seed, fold])
            train = np.zeros(labels.shape, dtype=bool)
            for value in np.unique(labels[labels > 0]):
                pixels = np.flatnonzero(labels == value)
                count = max(1, round(self.train_size * pixels.size))
                train.flat[generator.choice(pixels, count, replace=False)] = True
            test = (labels > 0) & ~train
            none = np.zeros_like(train)
            yield Split("random", fold, train, test, none, block_ids(labels.shape, BOOTSTRAP_BLOCK))
