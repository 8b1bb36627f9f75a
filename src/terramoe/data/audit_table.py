"""The audit of a split of points in a table."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import numpy as np
from scipy.spatial import Delaunay, QhullError

from terramoe.data.audit_measures import (
    accuracies,
    extrapolates,
    extrapolation_share,
    farther_than_use,
    nearer_than_use,
    never_trained,
    place_answers,
    quantiles,
    small_blocks,
)
from terramoe.data.point_table import PointTable
from terramoe.data.splits import autocorrelation_range, nearest, positions_of, wasserstein
from terramoe.errors import SplitError

AREA_POINTS = 10_000


class PointSplitter(Protocol):
    """scikit-learn's interface of a split."""

    def split(self, X: object, y: object = None, groups: object = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Indices of training and test rows, a pair a fold."""

    def get_n_splits(self, X: object = None, y: object = None, groups: object = None) -> int:
        """The number of folds."""


@dataclass(frozen=True)
class TableAudit:
    """What a split of a table gives away. Distances are in metres for degrees, else in the unit of the coordinates.

    Attributes:
        name: of the split. train, test, guard: points of the fold.
        shared_places: test points at the very place of a training point.
        shared_groups: groups that both train and test; None without groups.
        time_gap: smallest time between a test and a training point, in days or the unit of the times; None without.
        majority, coordinates, logistic: see ``accuracies``.
        guard_distance, test_distances, deployment_distances, wasserstein, extrapolation, label_range, leak_flags,
            warnings, leaks: see ``SplitAudit``. logistic and extrapolation are None without features.
        missing: names of classes that are tested but never trained.
    """

    name: str
    train: int
    test: int
    guard: int
    shared_places: int
    shared_groups: int | None
    time_gap: float | None
    missing: tuple[str, ...]
    majority: float
    coordinates: float
    logistic: float | None
    guard_distance: float
    test_distances: tuple[float, ...]
    deployment_distances: tuple[float, ...]
    wasserstein: float
    extrapolation: float | None
    label_range: float
    leak_flags: tuple[str, ...]
    warnings: tuple[str, ...]
    leaks: bool


def audit_table(
    table: PointTable, splitters: Mapping[str, PointSplitter], *, area: np.ndarray | None = None, fold: int = 0
) -> list[TableAudit]:
    """Audit one fold of each splitter.

    Args:
        area: (M, 2) coordinates over the deployment area; None for the convex hull of the points.
        fold: which, counted anew after the last.

    Raises:
        SplitError: see the splitters.
    """
    area = hull_points(table.coordinates) if area is None else area
    deployment = nearest(positions_of(area, degrees=table.degrees), table.positions)
    reach = autocorrelation_range(table.labels, table.coordinates, degrees=table.degrees)
    found = []
    for name, splitter in splitters.items():
        train, test = fold_of(table, splitter, fold)
        block = getattr(splitter, "block", None)
        found.append(_audit(name, table, train, test, deployment, reach, block))
    return found


def fold_of(table: PointTable, splitter: PointSplitter, fold: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of training and test points of one fold, counted anew after the last."""
    call = (table.coordinates, table.labels, table.groups)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The groups parameter is ignored")  # scikit-learn's KFold needs none
        return next(islice(splitter.split(*call), fold % splitter.get_n_splits(*call), None))


def hull_points(coordinates: np.ndarray, count: int = AREA_POINTS, seed: int = 0) -> np.ndarray:
    """(count, 2) random points, uniform in x and y, within the convex hull of coordinates (N, 2).

    Raises:
        SplitError: the points lie on a line.
    """
    try:
        hull = Delaunay(coordinates)
    except (QhullError, ValueError) as error:
        raise SplitError(
            "the points span no area", where="deployment area", fix="give its points with --area"
        ) from error
    generator = np.random.default_rng(seed)
    low, high = coordinates.min(axis=0), coordinates.max(axis=0)
    found = np.empty((0, 2))
    while len(found) < count:
        drawn = generator.uniform(low, high, size=(count, 2))
        found = np.concatenate([found, drawn[hull.find_simplex(drawn) >= 0]])
    return found[:count]


def _audit(
    name: str,
    table: PointTable,
    train: np.ndarray,
    test: np.ndarray,
    deployment: np.ndarray,
    reach: float,
    block: float | None,
) -> TableAudit:
    def parts(values: np.ndarray | None) -> tuple[np.ndarray, np.ndarray] | None:
        return None if values is None else (values[train], values[test])

    places, features, groups, times = map(parts, (table.positions, table.features, table.groups, table.times))
    distance = nearest(places[1], places[0])
    scores = accuracies(places, parts(table.labels), features)
    outside = None if features is None else extrapolation_share(*features)
    missing = sorted(set(table.labels[test].tolist()) - set(table.labels[train].tolist()))
    names = tuple(table.class_names[value - 1] for value in missing)
    shared = int((distance == 0).sum())
    both = None if groups is None else len(set(groups[0].tolist()) & set(groups[1].tolist()))
    leaks = [f"{shared} test points lie at the very place of a training point"] if shared else []
    leaks += [*place_answers(**scores), *nearer_than_use(distance, deployment, table.unit)]
    notes = [
        *([f"{both} groups both train and test"] if both else ()),
        *(small_blocks(block, reach, table.unit) if block else ()),
        *extrapolates(outside),
        *farther_than_use(distance, deployment, table.unit),
        *never_trained(names),
    ]
    return TableAudit(
        name=name,
        train=len(train),
        test=len(test),
        guard=len(table.labels) - len(train) - len(test),
        shared_places=shared,
        shared_groups=both,
        time_gap=None if times is None else float(nearest(times[1][:, None], times[0][:, None]).min()),
        missing=names,
        **scores,
        guard_distance=float(distance.min()),
        test_distances=quantiles(distance),
        deployment_distances=quantiles(deployment),
        wasserstein=wasserstein(distance, deployment),
        extrapolation=outside,
        label_range=reach,
        leak_flags=tuple(leaks),
        warnings=tuple(notes),
        leaks=bool(leaks),
    )
