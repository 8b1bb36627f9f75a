"""Whole fields: connected pixels of one class."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from terramoe.data.splits.split import RasterFolds, Split, check_raster, deal, folds_of

EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=bool)


@dataclass(frozen=True)
class FieldSplit(RasterFolds):
    """Whole fields: connected pixels of one class (diagonals count) stay together. Stricter than blocks.

    A class with a single field cannot be both trained and tested; see ``missing_classes``.
    """

    n_splits: int = 3
    guard: int = 2
    seed: int = 0

    def masks(self, labels: np.ndarray) -> Iterator[Split]:
        """Labels (H, W) -> one Split a fold."""
        check_raster(labels, self.n_splits, self.guard)
        fields = field_ids(labels)
        fold = deal(labels, fields, self.n_splits, self.seed)[fields]
        yield from folds_of("field", labels, fold, self.n_splits, self.guard, fields)


def field_ids(labels: np.ndarray) -> np.ndarray:
    """(H, W) int64: connected pixels of one label share an id; unlabelled pixels count as a label too."""
    ids = np.zeros(labels.shape, dtype=np.int64)
    for value in np.unique(labels):
        parts, _ = ndimage.label(labels == value, EIGHT_NEIGHBOURS)
        ids[parts > 0] = parts[parts > 0] + ids.max()
    return ids
