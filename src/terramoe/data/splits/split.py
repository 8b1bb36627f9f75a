"""The record of one fold, what all splits of rasters share, and the bridge to scikit-learn."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy import ndimage

from terramoe.errors import SplitError


@dataclass(frozen=True)
class Split:
    """One fold. All rasters are (H, W).

    Attributes:
        name: of the kind of split.
        fold: its number.
        train, test, guard: bool; labelled pixels that train, that test, and that do neither because they lie too
            close to a test pixel.
        blocks: int64 ids of the units that may be taken as independent, for bootstraps. Every pixel has one.
    """

    name: str
    fold: int
    train: np.ndarray
    test: np.ndarray
    guard: np.ndarray
    blocks: np.ndarray

    def digest(self) -> str:
        """Sixteen hexadecimal digits that change with the split."""
        return hashlib.sha256(np.packbits([self.train, self.test]).tobytes()).hexdigest()[:16]


class Splitter(Protocol):
    """What all splits of rasters offer."""

    def masks(self, labels: np.ndarray) -> Iterator[Split]:
        """Labels (H, W), 0 = unlabelled -> one Split a fold."""

    def split(self, X: np.ndarray, y: object = None, groups: object = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Label raster (H, W) -> flat indices of training and test pixels, a pair a fold."""

    def get_n_splits(self, X: object = None, y: object = None, groups: object = None) -> int:
        """The number of folds."""


class RasterFolds:
    """scikit-learn's half of the interface, on top of ``masks`` and ``n_splits``."""

    n_splits: int

    def split(self, X: np.ndarray, y: object = None, groups: object = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Label raster (H, W) -> flat indices of training and test pixels, a pair a fold."""
        for fold in self.masks(X):
            yield np.flatnonzero(fold.train), np.flatnonzero(fold.test)

    def get_n_splits(self, X: object = None, y: object = None, groups: object = None) -> int:
        """The number of folds."""
        return self.n_splits


@dataclass(frozen=True, eq=False)
class LabelledPixels:
    """A split of a raster as scikit-learn's ``cv`` for the table of its labelled pixels.

        table, y = image[:, labels > 0].T, labels[labels > 0]
        cross_val_score(model, table, y, cv=LabelledPixels(BlockSplit(), labels))

    Args:
        splitter: any splitter of rasters. labels: (H, W), 0 = unlabelled; row i of the table is its i-th labelled
            pixel in reading order.
    """

    splitter: Splitter
    labels: np.ndarray

    def split(self, X: object, y: object = None, groups: object = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Table of the labelled pixels -> indices of training and test rows, a pair a fold.

        Raises:
            SplitError: the table has another number of rows; and see the splitter.
        """
        labelled = self.labels > 0
        rows = count_rows(X)
        if rows != labelled.sum():
            raise SplitError(
                f"the table has {rows} rows, the raster {labelled.sum()} labelled pixels",
                where="LabelledPixels",
                fix="give image[:, labels > 0].T",
            )
        for fold in self.splitter.masks(self.labels):
            yield np.flatnonzero(fold.train[labelled]), np.flatnonzero(fold.test[labelled])

    def get_n_splits(self, X: object = None, y: object = None, groups: object = None) -> int:
        """The number of folds."""
        return self.splitter.get_n_splits(self.labels)


def missing_classes(split: Split, labels: np.ndarray) -> list[int]:
    """Classes that have test pixels but no training pixel: no model can get them right."""
    return sorted(set(np.unique(labels[split.test]).tolist()) - set(np.unique(labels[split.train]).tolist()))


def require_all_classes(split: Split, labels: np.ndarray, names: Sequence[str]) -> None:
    """SplitError that names the classes of ``missing_classes``, if there are any."""
    missing = missing_classes(split, labels)
    if missing:
        raise SplitError(
            f"no training pixel is left of {', '.join(names[value - 1] for value in missing)}",
            where=f"{split.name} split, fold {split.fold}",
            fix="use a smaller --split.block or --split.guard, another --split.seed, or --lenient true",
        )


def count_rows(X: object) -> int:
    """Rows of an array, a sparse matrix, a data frame or a list."""
    return X.shape[0] if hasattr(X, "shape") else len(X)


def check_raster(labels: np.ndarray, n_splits: int, guard: int) -> None:
    """SplitError unless labels are a 2-D integer raster, with at least two folds and no negative guard."""
    if labels.ndim != 2 or labels.dtype.kind not in "iu":
        raise SplitError(
            f"labels are {labels.ndim}-D of type {labels.dtype}", where="split", fix="give a 2-D integer label raster"
        )
    if n_splits < 2:
        raise SplitError(f"{n_splits} folds", where="split", fix="use at least 2")
    if guard < 0:
        raise SplitError(f"guard is {guard}", where="split", fix="use 0 or more pixels")


def folds_of(
    name: str, labels: np.ndarray, fold_of_pixel: np.ndarray, n_splits: int, guard: int, blocks: np.ndarray
) -> Iterator[Split]:
    """One Split a fold: its labelled pixels test, those within the guard rest, all others train."""
    labelled = labels > 0
    for fold in range(n_splits):
        test = labelled & (fold_of_pixel == fold)
        near = dilate(test, guard)
        yield Split(name, fold, labelled & ~near, test, labelled & near & ~test, blocks)


def dilate(mask: np.ndarray, guard: int) -> np.ndarray:
    """A mask (H, W) with all pixels that lie within ``guard`` rows and columns of it."""
    return ndimage.maximum_filter(mask, size=2 * guard + 1, mode="constant")


def deal(labels: np.ndarray, units: np.ndarray, n_splits: int, seed: int) -> np.ndarray:
    """Deal whole units to the folds so that each class is spread as evenly as possible.

    The rarest class comes first, its largest units first, each to the fold that has least of the class, then least
    in all.

    Args:
        labels: int of any shape, 0 = unlabelled. units: int ids from 0, of the same shape. seed: breaks ties.

    Returns:
        Fold of each unit id, -1 for units without labels.

    Raises:
        SplitError: fewer labelled units than folds.
    """
    classes = np.unique(labels[labels > 0])
    counts = np.zeros((units.max() + 1, len(classes)), dtype=np.int64)  # (units, classes)
    np.add.at(counts, (units[labels > 0], np.searchsorted(classes, labels[labels > 0])), 1)
    if (counts.sum(1) > 0).sum() < n_splits:
        raise SplitError(
            f"{int((counts.sum(1) > 0).sum())} blocks hold labels, for {n_splits} folds",
            where="split",
            fix="use smaller blocks or fewer folds",
        )
    generator = np.random.default_rng(seed)
    fold = np.full(len(counts), -1)
    in_fold = np.zeros((n_splits, len(classes)))
    for c in np.argsort(counts.sum(0), kind="stable"):
        open_units = np.flatnonzero((counts[:, c] > 0) & (fold < 0))
        open_units = generator.permutation(open_units)
        for unit in open_units[np.argsort(-counts[open_units, c], kind="stable")]:
            fold[unit] = np.lexsort((in_fold.sum(1), in_fold[:, c]))[0]
            in_fold[fold[unit]] += counts[unit]
    return fold
