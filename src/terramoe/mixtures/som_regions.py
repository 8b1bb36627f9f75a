"""Regions of a self-organising map as a hard gate."""

from __future__ import annotations

import numpy as np
from sklearn.cluster import KMeans

from terramoe.mixtures.som import SelfOrganizingMap


def region_logits(som: SelfOrganizingMap, unit_region: np.ndarray, X: np.ndarray) -> np.ndarray:
    """(n, R) minus half the squared distance from X (n, D) to the nearest unit of each region."""
    square = som.distances(X)
    return np.stack([-0.5 * square[:, unit_region == r].min(axis=1) for r in range(unit_region.max() + 1)], axis=1)


def partition_units(som: SelfOrganizingMap, regions: int, random_state: np.random.RandomState) -> np.ndarray:
    """(M,) region of each unit: k-means of the units that have won, weighted by their wins; the others go along.

    Every region so has training samples; there are fewer than ``regions`` where fewer units have won.
    """
    units = som.scaling_.apply(som.codebook_)
    won = np.flatnonzero(som.hits_)
    distinct = len(np.unique(units[won], axis=0))
    found = KMeans(min(regions, distinct), n_init=4, random_state=random_state)
    found.fit(units[won], sample_weight=som.hits_[won])
    return np.unique(found.labels_, return_inverse=True)[1][_nearest(units, units[won])]


def _nearest(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(points,) index of the nearest of ``others``."""
    return ((points[:, None] - others[None]) ** 2).sum(axis=2).argmin(axis=1)
