"""Splits that somebody has drawn: leave a region, season or sensor out, and official maps of train and test."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from terramoe.data.splits.blocks import BOOTSTRAP_BLOCK, block_ids
from terramoe.data.splits.split import RasterFolds, Split, check_raster, deal, folds_of
from terramoe.errors import SplitError


@dataclass(frozen=True, eq=False)
class GroupSplit(RasterFolds):
    """Leave a group out: a region, season, sensor, polygon, or whatever the raster of groups names.

    Args:
        groups: (H, W) int: the group of each pixel, from 1; 0 = none, for unlabelled pixels only.
        folds: None leaves out one group at a time, in the order of their numbers; a number deals whole groups to so
            many folds, each class spread as evenly as possible.
        guard: width of the band without training around test pixels, in pixels.
        seed: breaks ties in the dealing.
    """

    groups: np.ndarray
    folds: int | None = None
    guard: int = 0
    seed: int = 0

    @property
    def n_splits(self) -> int:
        return len(np.unique(self.groups[self.groups > 0])) if self.folds is None else self.folds

    def get_n_splits(self, X: np.ndarray | None = None, y: object = None, groups: object = None) -> int:
        """The number of folds; with the label raster (H, W) as X only groups that hold labels count."""
        if X is None or self.folds is not None:
            return self.n_splits
        return len(np.unique(self.groups[X > 0]))

    def masks(self, labels: np.ndarray) -> Iterator[Split]:
        """Labels (H, W) -> one Split a fold.

        Raises:
            SplitError: groups of another size, labelled pixels without a group, or fewer groups than folds.
        """
        _same_size(self.groups, labels)
        lost = int((self.groups[labels > 0] <= 0).sum())
        if lost:
            raise SplitError(
                f"{lost} labelled pixels have no group", where="GroupSplit", fix="number the groups from 1, everywhere"
            )
        folds = self.get_n_splits(labels)
        check_raster(labels, folds, self.guard)
        if self.folds is None:
            fold = np.searchsorted(np.unique(self.groups[labels > 0]), self.groups)
        else:
            _, numbers = np.unique(self.groups, return_inverse=True)
            fold = deal(labels, numbers, folds, self.seed)[numbers]
        yield from folds_of("group", labels, fold, folds, self.guard, block_ids(labels.shape, BOOTSTRAP_BLOCK))


@dataclass(frozen=True, eq=False)
class OfficialSplit(RasterFolds):
    """The split that a benchmark prescribes; one fold.

    Args:
        kinds: (H, W) int: 1 train, 2 guard, 3 test, as in the ``split.tif`` of a run; labelled pixels that are 0 are
            put with the guard: they do neither.
        places: (H, W) int: pixels of one number count together in a bootstrap, such as those of one place on the ground
            in several images of it; None for square blocks.
    """

    kinds: np.ndarray
    places: np.ndarray | None = None
    n_splits = 1

    def masks(self, labels: np.ndarray) -> Iterator[Split]:
        """Labels (H, W) -> the one Split; SplitError for other values than 0..3, or without train or test pixels."""
        _same_size(self.kinds, labels)
        check_raster(labels, 2, 0)
        odd = sorted(set(np.unique(self.kinds).tolist()) - {0, 1, 2, 3})
        labelled = labels > 0
        train, test = labelled & (self.kinds == 1), labelled & (self.kinds == 3)
        if odd or not train.any() or not test.any():
            what = f"it holds {odd[:5]}" if odd else f"{train.sum()} labelled pixels train, {test.sum()} test"
            raise SplitError(what, where="official split", fix="use 1 for train, 2 for guard, 3 for test")
        rest = labelled & ~train & ~test
        if self.places is not None:
            _same_size(self.places, labels)
        blocks = block_ids(labels.shape, BOOTSTRAP_BLOCK) if self.places is None else self.places
        yield Split("official", 0, train, test, rest, blocks)


def _same_size(raster: np.ndarray, labels: np.ndarray) -> None:
    if raster.shape != labels.shape:
        raise SplitError(
            f"the raster of the split is {raster.shape}, the labels are {labels.shape}",
            where="split",
            fix="bring both to the same grid",
        )
