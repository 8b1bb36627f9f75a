"""kNNDM for rasters: folds of labelled pixels at the distances of the deployment area; see ``matching``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from terramoe.data.splits.blocks import BOOTSTRAP_BLOCK, BlockSplit, block_ids
from terramoe.data.splits.distances import wasserstein
from terramoe.data.splits.matching import Match, distances_to_train, match_distances
from terramoe.data.splits.split import RasterFolds, Split, check_raster, dilate, folds_of
from terramoe.errors import SplitError


@dataclass(frozen=True, eq=False)
class KNNDMSplit(RasterFolds):
    """Clusters of labelled pixels, merged into folds whose test-to-train distances match those of the deployment area.

    Every labelled pixel is tested once over the folds. Classes are not balanced; see ``missing_classes``.

    Args:
        n_splits: folds. area: (H, W) bool, the deployment area; None for the whole raster. Labelled pixels in it
            count as distance 0: where only new pixels matter, leave them out.
        guard: width of the band without training, in pixels; the distances are matched with it in place.
        seed: see ``match_distances``.
    """

    n_splits: int = 3
    area: np.ndarray | None = None
    guard: int = 0
    seed: int = 0

    def masks(self, labels: np.ndarray) -> Iterator[Split]:
        """Labels (H, W) -> one Split a fold."""
        fold = np.full(labels.shape, -1)
        fold[labels > 0] = self.match(labels).fold
        blocks = block_ids(labels.shape, BOOTSTRAP_BLOCK)
        yield from folds_of("knndm", labels, fold, self.n_splits, self.guard, blocks)

    def match(self, labels: np.ndarray) -> Match:
        """Labels (H, W) -> what was matched and how well; points are the labelled pixels in reading order."""
        check_raster(labels, self.n_splits, self.guard)
        return match_distances(
            np.argwhere(labels > 0).astype(np.float64),
            self._area(labels),
            self.n_splits,
            train_of=self._train_of(labels),
            seed=self.seed,
        )

    def compare(self, labels: np.ndarray, block: int = BOOTSTRAP_BLOCK) -> dict[str, float]:
        """W, in pixels, of these folds, of random folds, and of square blocks of that side with the same guard."""
        match = self.match(labels)
        fold = np.full(labels.shape, -1)
        for split in BlockSplit(self.n_splits, block, self.guard, self.seed).masks(labels):
            fold[split.test] = split.fold
        pixels = np.argwhere(labels > 0).astype(np.float64)
        everywhere = np.ones(len(pixels), dtype=bool)
        blocks = distances_to_train(pixels, fold[labels > 0], self._train_of(labels), everywhere)
        return {
            "knndm": match.wasserstein,
            "random": match.random,
            "block": wasserstein(blocks, match.deployment),
        }

    def _area(self, labels: np.ndarray) -> np.ndarray:
        if self.area is not None and self.area.shape != labels.shape:
            raise SplitError(
                f"the deployment area is {self.area.shape}, the labels are {labels.shape}",
                where="KNNDMSplit",
                fix="bring both to the same grid",
            )
        area = np.ones(labels.shape, dtype=bool) if self.area is None else self.area
        return np.argwhere(area).astype(np.float64)

    def _train_of(self, labels: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        labelled = labels > 0

        def train_of(test: np.ndarray) -> np.ndarray:
            mask = np.zeros(labels.shape, dtype=bool)
            mask[labelled] = test
            return ~dilate(mask, self.guard)[labelled]

        return train_of
