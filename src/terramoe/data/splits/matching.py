"""Folds whose test-to-train distances are those at which the map will be used.

kNNDM CV: k-fold nearest-neighbour distance matching cross-validation for map accuracy estimation, 2024,
doi:10.5194/gmd-17-5897-2024. A random split asks about places next to the training points, large blocks about places
far away. What a map will be asked lies between: the distances from the deployment area to the sample. Points are
clustered coarsely to finely, the clusters merged into folds, and the folds kept whose distances are nearest to those,
by the Wasserstein-1 distance W.

Differences from the paper: random folds are one of the candidates, instead of a test for clustering beforehand; of
more than ``UNITS`` points the squares of a grid are clustered; and W is taken over ``SAMPLES`` points of the sample
and of the area, drawn once. Training points are never thinned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage

from terramoe.data.splits.distances import nearest, wasserstein
from terramoe.errors import SplitError

SAMPLES = 10_000  # points of the sample, and of the deployment area, over which distances are compared
UNITS = 3_000  # points that are clustered one by one
CUTS = 30  # numbers of clusters that are tried
FINER = 8  # grids finer than the units that are tried, each with squares of half the area


@dataclass(frozen=True)
class Match:
    """Folds whose distances match, for N points.

    Attributes:
        fold: (N,) int, the fold that tests each point.
        clusters: how many clusters were merged into the folds; N for single points at random.
        wasserstein: W of these folds, in pixels or metres. random: W of random folds of single points.
        test, deployment: the distances compared: of test points to training points, of the area to the sample.
    """

    fold: np.ndarray
    clusters: int
    wasserstein: float
    random: float
    test: np.ndarray
    deployment: np.ndarray


def match_distances(
    positions: np.ndarray,
    area: np.ndarray,
    n_splits: int,
    *,
    train_of: Callable[[np.ndarray], np.ndarray] = np.logical_not,
    seed: int = 0,
) -> Match:
    """Search the folds of least W.

    No fold tests more than half of the points (or 1.2 times its even share, if that is more).

    Args:
        positions: (N, 2 or 3) of the sample, see ``distances``. area: (M, 2 or 3) of the deployment area.
        n_splits: folds.
        train_of: (N,) bool that test -> (N,) bool that train; all others, unless a guard is wanted.
        seed: of the random folds and of the points over which W is taken.

    Raises:
        SplitError: fewer points than folds, or an empty area.
    """
    if len(positions) < n_splits or not len(area):
        raise SplitError(
            f"{len(positions)} points for {n_splits} folds, {len(area)} points in the deployment area",
            where="kNNDM",
            fix="use fewer folds, and an area that is not empty",
        )
    generator = np.random.default_rng(seed)
    deployment = nearest(_thin(area, generator), positions)
    sample = np.zeros(len(positions), dtype=bool)
    sample[_thin(np.arange(len(positions)), generator)] = True
    largest = max(0.5, 1.2 / n_splits) * len(positions)

    fold = generator.permutation(len(positions)) % n_splits
    test = distances_to_train(positions, fold, train_of, sample)
    random = wasserstein(test, deployment)
    best = Match(fold, len(positions), random, random, test, deployment)
    for clusters in _clusterings(positions, n_splits):
        fold = _merge(clusters, positions, n_splits)
        if np.bincount(fold, minlength=n_splits).max() > largest:
            continue
        test = distances_to_train(positions, fold, train_of, sample)
        found = wasserstein(test, deployment)
        if found < best.wasserstein:
            best = Match(fold, int(clusters.max()) + 1, found, random, test, deployment)
    return best


def distances_to_train(
    positions: np.ndarray, fold: np.ndarray, train_of: Callable[[np.ndarray], np.ndarray], sample: np.ndarray
) -> np.ndarray:
    """Distance of each point of the sample (N,) bool to the nearest that trains while it is tested."""
    found = np.empty(len(positions))
    for number in np.unique(fold):
        test = fold == number
        found[test & sample] = nearest(positions[test & sample], positions[train_of(test)])
    return found[sample]


def _thin(points: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """``SAMPLES`` points at random, or all if there are fewer."""
    return points if len(points) <= SAMPLES else points[generator.choice(len(points), SAMPLES, replace=False)]


def _clusterings(positions: np.ndarray, n_splits: int) -> Iterator[np.ndarray]:
    """Cluster ids (N,) from 0, from coarse to fine: cuts of a Ward tree over units, then ever smaller squares."""
    units, side = _units(positions)
    centres = _means(positions, units)
    if len(centres) < n_splits:
        return
    tree = linkage(centres, "ward")
    for count in np.unique(np.geomspace(n_splits, len(centres), CUTS).round().astype(int)):
        yield _numbered(fcluster(tree, count, "maxclust"))[units]
    if len(centres) < len(positions):
        for finer in range(1, FINER + 1):
            yield _squares(positions, side / np.sqrt(2) ** finer)


def _units(positions: np.ndarray) -> tuple[np.ndarray, float]:
    """At most ``UNITS`` groups of points, and the side of the finest grid whose squares they are; 0 = single points."""
    if len(positions) <= UNITS:
        return np.arange(len(positions)), 0.0
    side = max(np.ptp(positions, axis=0)) or 1.0
    units = np.zeros(len(positions), dtype=np.int64)
    for _ in range(40):  # enough for clusters of a 40,000th of the extent; points that coincide never come apart
        finer = _squares(positions, side / 1.3)
        if finer.max() >= UNITS:
            break
        units, side = finer, side / 1.3
    return units, side


def _squares(positions: np.ndarray, side: float) -> np.ndarray:
    """Number of the square (or cube) of a grid that holds each position."""
    cells = np.floor((positions - positions.min(0)) / side).astype(np.int64)
    _, numbers = np.unique(cells, axis=0, return_inverse=True)
    return numbers.ravel()


def _merge(clusters: np.ndarray, positions: np.ndarray, n_splits: int) -> np.ndarray:
    """Deal the clusters in turn, in the order of their centres along the longest axis of the sample."""
    centres = _means(positions, clusters)
    centred = centres - centres.mean(0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    fold = np.empty(len(centres), dtype=np.int64)
    fold[np.argsort(centred @ axes[0], kind="stable")] = np.arange(len(centres)) % n_splits
    return fold[clusters]


def _means(positions: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """(G, dimensions) mean position of each group."""
    counts = np.bincount(groups)
    return np.stack([np.bincount(groups, weights=column) / counts for column in positions.T], axis=1)


def _numbered(ids: np.ndarray) -> np.ndarray:
    """Any ids as 0, 1, 2 ..."""
    return np.unique(ids, return_inverse=True)[1].ravel()
