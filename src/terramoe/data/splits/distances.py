"""Distances between points, on a plane or on the Earth, and how far two sets of distances are apart.

Points are *positions*: (N, 1) in time, (N, 2) on a plane in pixels or metres, or (N, 3) on the Earth's sphere in metres
from its centre. Distances between the latter are great-circle distances: the chord c between two positions and the arc
a of a sphere of radius R are bound by sin(a / 2R) = c / 2R, which is the haversine formula. So one KD-tree serves all.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree
from scipy.stats import wasserstein_distance

from terramoe.errors import SplitError

EARTH_RADIUS = 6_371_008.8  # metres, mean


def positions_of(coordinates: np.ndarray, *, degrees: bool = False) -> np.ndarray:
    """Coordinates (N, 2) -> positions.

    Args:
        coordinates: x and y, in any unit of length; or longitude and latitude, in this order.
        degrees: they are longitude and latitude; distances are then in metres.

    Raises:
        SplitError: another shape, not finite, or no latitude.
    """
    coordinates = np.asarray(coordinates, dtype=np.float64)
    if coordinates.ndim != 2 or coordinates.shape[1] != 2:
        raise SplitError(f"coordinates have shape {coordinates.shape}", where="split", fix="give (N, 2)")
    if not np.isfinite(coordinates).all():
        raise SplitError("some coordinates are not finite", where="split", fix="drop those points")
    if not degrees:
        return coordinates
    if np.abs(coordinates[:, 1]).max(initial=0) > 90:
        raise SplitError(
            f"a latitude is {coordinates[np.abs(coordinates[:, 1]).argmax(), 1]:g}",
            where="split",
            fix="give longitude first, latitude second, in degrees",
        )
    longitude, latitude = np.radians(coordinates).T
    return EARTH_RADIUS * np.stack(
        [np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude), np.sin(latitude)], axis=1
    )


def nearest(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(N,) distance from each position to the nearest of the others; infinite if there is none."""
    if not len(others):
        return np.full(len(points), np.inf)
    distance, _ = cKDTree(others).query(points)
    return arc(distance, points.shape[1])


def arc(distance: np.ndarray, dimensions: int) -> np.ndarray:
    """Straight-line distances between positions of so many dimensions -> distances along the Earth, if there are 3."""
    if dimensions < 3:
        return distance
    return 2 * EARTH_RADIUS * np.arcsin(np.minimum(distance / (2 * EARTH_RADIUS), 1))


def wasserstein(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Area between the two cumulative distributions of distances; infinite where a distance is."""
    if not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
        return np.inf
    return float(wasserstein_distance(ours, theirs))
