"""How far neighbours resemble each other: the empirical variogram, and the range at which it levels off.

Blocks should be at least as large as the range of autocorrelation: Cross-validation strategies for data with temporal,
spatial, hierarchical, or phylogenetic structure, 2017, doi:10.1111/ecog.02881. For classes the semivariance is the
share of pairs of unlike class (join counts), for values half the mean squared difference of the standardised values.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls
from scipy.spatial import cKDTree

from terramoe.data.splits.distances import arc, positions_of
from terramoe.errors import SplitError

LAGS = 25  # bins of distance, in a geometric series from the nearest neighbour to half the extent
DRAWN, PAIRS = 9_000, 3_000  # pairs drawn for each lag, and kept: those that hit their distance best
STRUCTURE = 0.1  # share of the sill that must vary with distance, else there is no autocorrelation to speak of


@dataclass(frozen=True)
class Variogram:
    """An empirical variogram and the spherical model fitted to it.

    Attributes:
        distance, semivariance: (L,) means over the pairs of each lag. pairs: (L,) how many.
        nugget, sill: of the model, at distance 0 and from the range on.
        range: distance from which points no longer resemble each other, in pixels or the unit of the coordinates
            (metres for degrees); 0 where nothing varies with distance; half the extent where nothing levels off.
    """

    distance: np.ndarray
    semivariance: np.ndarray
    pairs: np.ndarray
    nugget: float
    sill: float
    range: float

    def model(self, distance: np.ndarray) -> np.ndarray:
        """Semivariance of the model at some distances."""
        return _spherical(distance, self.nugget, self.sill - self.nugget, self.range)


def autocorrelation_range(
    values: np.ndarray, coordinates: np.ndarray | None = None, *, degrees: bool = False, seed: int = 0
) -> float:
    """The range of ``variogram``: blocks should be at least as large."""
    return variogram(values, coordinates, degrees=degrees, seed=seed).range


def variogram(
    values: np.ndarray, coordinates: np.ndarray | None = None, *, degrees: bool = False, seed: int = 0
) -> Variogram:
    """Estimate the variogram of labels or values from pairs of points, some for each distance.

    Args:
        values: without coordinates a raster (H, W): integers are classes, 0 = unlabelled; floats are values, NaN =
            missing. With coordinates (N,) classes or values, or (N, F) features whose semivariance is averaged.
        coordinates: (N, 2), see ``positions_of``. degrees: they are longitude and latitude.
        seed: of the pairs.

    Raises:
        SplitError: fewer than ten points.
    """
    values = np.asarray(values)
    if coordinates is None:
        known = values > 0 if values.dtype.kind in "iu" else np.isfinite(values)
        positions, values = np.argwhere(known).astype(np.float64), values[known]
    else:
        positions = positions_of(coordinates, degrees=degrees)
    if len(positions) < 10:
        raise SplitError(f"{len(positions)} points", where="variogram", fix="give at least 10")
    first, second, distance = _pairs(positions, np.random.default_rng(seed))
    unlike = _semivariance(values, first, second)
    edges = np.geomspace(distance.min(), distance.max() * (1 + 1e-9), LAGS + 1)
    bins = np.digitize(distance, edges) - 1
    pairs = np.bincount(bins, minlength=LAGS)
    full = pairs > 0
    means = [np.bincount(bins, weights=w, minlength=LAGS)[full] / pairs[full] for w in (distance, unlike)]
    return _fit(*means, pairs[full])


def _pairs(positions: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First, second and distance of pairs of points at every lag up to half the extent.

    From a random point we go a lag in a random direction and take the point nearest to where we arrive. Arrivals
    outside the sample would all meet its border, so of each lag the third that arrives nearest to a point is kept.
    This finds near and far pairs alike, however large or sparse the sample is.
    """
    tree = cKDTree(positions)
    some = generator.choice(len(positions), min(PAIRS, len(positions)), replace=False)
    gaps, _ = tree.query(positions[some], 2)
    gaps = gaps[:, 1][gaps[:, 1] > 0]
    if not gaps.size:
        raise SplitError("all points lie at one place", where="variogram", fix="give points at several places")
    farthest = np.linalg.norm(np.ptp(positions, axis=0)) / 2
    lags = np.geomspace(min(float(np.median(gaps)), farthest), farthest, LAGS)
    first = generator.integers(0, len(positions), (LAGS, DRAWN))
    direction = generator.normal(size=(LAGS, DRAWN, positions.shape[1]))
    direction /= np.linalg.norm(direction, axis=2, keepdims=True)
    missed, second = tree.query(positions[first] + lags[:, None, None] * direction)
    best = np.argsort(missed, axis=1)[:, :PAIRS]
    first, second = (np.take_along_axis(side, best, axis=1).ravel() for side in (first, second))
    distance = np.linalg.norm(positions[first] - positions[second], axis=1)
    good = (distance > 0) & (distance <= farthest)
    return first[good], second[good], arc(distance[good], positions.shape[1])


def _semivariance(values: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Of each pair."""
    if values.dtype.kind not in "f":
        return (values[first] != values[second]).astype(np.float64)
    features = values.reshape(len(values), -1)
    spread = features.std(axis=0)
    features = features / np.where(spread > 0, spread, 1)
    return 0.5 * np.square(features[first] - features[second]).mean(axis=1)


def _spherical(distance: np.ndarray, nugget: float, rise: float, reach: float) -> np.ndarray:
    """Semivariance of the spherical model: it rises from the nugget and is level from the range on."""
    share = np.minimum(np.asarray(distance) / reach, 1) if reach > 0 else np.ones_like(distance)
    return nugget + rise * (1.5 * share - 0.5 * share**3)


def _fit(distance: np.ndarray, semivariance: np.ndarray, pairs: np.ndarray) -> Variogram:
    """The spherical model of least squares, weighted by pairs: nugget and rise by NNLS for each of many ranges."""
    weight = np.sqrt(pairs)
    fits = []
    for reach in np.geomspace(distance[0], distance[-1], 200):
        shape = np.stack([np.ones_like(distance), _spherical(distance, 0, 1, reach)], axis=1)
        (nugget, rise), error = nnls(shape * weight[:, None], semivariance * weight)
        fits.append((error, float(reach), float(nugget), float(rise)))
    _, reach, nugget, rise = min(fits)
    if rise <= STRUCTURE * (nugget + rise):
        reach = 0.0
    return Variogram(distance, semivariance, pairs, nugget, nugget + rise, reach)
