"""Spatial splits of a label raster into training and test pixels, scikit-learn style. Needs numpy and scipy only.

Neighbouring pixels resemble each other, so a random split tests on near copies of what was trained on. Blocks or
whole fields, with a guard band between, keep test and training apart: Cross-validation strategies for data with
temporal, spatial, hierarchical, or phylogenetic structure, 2017, doi:10.1111/ecog.02881.

    for train, test in BlockSplit(block=12, guard=2).split(labels):      # flat pixel indices
    for split in BlockSplit(block=12, guard=2).masks(labels):            # boolean rasters
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy import ndimage

from terramoe.errors import SplitError

EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=bool)


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
    """What all splits offer."""

    def masks(self, labels: np.ndarray) -> Iterator[Split]:
        """Labels (H, W), 0 = unlabelled -> one Split a fold."""

    def split(self, X: np.ndarray, y: object = None, groups: object = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Label raster (H, W) -> flat indices of training and test pixels, a pair a fold."""

    def get_n_splits(self, X: object = None, y: object = None, groups: object = None) -> int:
        """The number of folds."""


class _Folds:
    """scikit-learn's half of the interface, on top of ``masks`` and ``n_splits``."""

    n_splits: int

    def split(self, X: np.ndarray, y: object = None, groups: object = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Label raster (H, W) -> flat indices of training and test pixels, a pair a fold."""
        for fold in self.masks(X):
            yield np.flatnonzero(fold.train), np.flatnonzero(fold.test)

    def get_n_splits(self, X: object = None, y: object = None, groups: object = None) -> int:
        """The number of folds."""
        return self.n_splits


@dataclass(frozen=True)
class BlockSplit(_Folds):
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
        _check(labels, self.n_splits, self.guard)
        if self.block < 1:
            raise SplitError(f"block is {self.block}", where="BlockSplit", fix="use at least 1 pixel")
        blocks = block_ids(labels.shape, self.block)
        yield from _folds("block", labels, blocks, self.n_splits, self.guard, self.seed)


@dataclass(frozen=True)
class FieldSplit(_Folds):
    """Whole fields: connected pixels of one class (diagonals count) stay together. Stricter than blocks.

    A class with a single field cannot be both trained and tested; see ``missing_classes``.
    """

    n_splits: int = 3
    guard: int = 2
    seed: int = 0

    def masks(self, labels: np.ndarray) -> Iterator[Split]:
        """Labels (H, W) -> one Split a fold."""
        _check(labels, self.n_splits, self.guard)
        yield from _folds("field", labels, field_ids(labels), self.n_splits, self.guard, self.seed)


@dataclass(frozen=True)
class RandomSplit(_Folds):
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
        _check(labels, self.n_splits, 0)
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
            yield Split("random", fold, train, test, np.zeros_like(train), block_ids(labels.shape, 12))


def block_ids(shape: tuple[int, int], block: int) -> np.ndarray:
    """(H, W) int64: the number of the square block that holds each pixel, in reading order."""
    rows, columns = (np.arange(size) // block for size in shape)
    return rows[:, None] * (columns[-1] + 1) + columns


def field_ids(labels: np.ndarray) -> np.ndarray:
    """(H, W) int64: connected pixels of one label share an id; unlabelled pixels count as a label too."""
    ids = np.zeros(labels.shape, dtype=np.int64)
    for value in np.unique(labels):
        parts, _ = ndimage.label(labels == value, EIGHT_NEIGHBOURS)
        ids[parts > 0] = parts[parts > 0] + ids.max()
    return ids


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


def _check(labels: np.ndarray, n_splits: int, guard: int) -> None:
    if labels.ndim != 2 or labels.dtype.kind not in "iu":
        raise SplitError(
            f"labels are {labels.ndim}-D of type {labels.dtype}", where="split", fix="give a 2-D integer label raster"
        )
    if n_splits < 2:
        raise SplitError(f"{n_splits} folds", where="split", fix="use at least 2")
    if guard < 0:
        raise SplitError(f"guard is {guard}", where="split", fix="use 0 or more pixels")


def _folds(name: str, labels: np.ndarray, units: np.ndarray, n_splits: int, guard: int, seed: int) -> Iterator[Split]:
    fold_of_pixel = _deal(labels, units, n_splits, seed)[units]
    labelled = labels > 0
    for fold in range(n_splits):
        test = labelled & (fold_of_pixel == fold)
        near = ndimage.maximum_filter(test, size=2 * guard + 1, mode="constant")
        yield Split(name, fold, labelled & ~near, test, labelled & near & ~test, units)


def _deal(labels: np.ndarray, units: np.ndarray, n_splits: int, seed: int) -> np.ndarray:
    """Fold of each unit id, -1 for units without labels: rarest class first, its largest units first, each to the
    fold that has least of the class, then least in all."""
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
