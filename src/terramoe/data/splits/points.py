"""Splits of tables: points with coordinates, and with groups or dates. They are scikit-learn's ``cv`` as they stand.

    cross_val_score(model, X, y, cv=PointBlockSplit(coordinates, block=5_000, guard=1_000))
    cross_val_score(model, X, y, groups=season, cv=LeaveGroupOut(times=dates, time_guard=30))

Coordinates are (N, 2), row i for row i of the table: x and y in any unit of length, or with ``degrees`` longitude and
latitude; distances are then great-circle distances in metres. A point trains in a fold if it lies farther than
``guard`` from every test point, and in time farther than ``time_guard``; each holds by itself, None asks for nothing.
A guard of 0 still parts points at the very same place.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from terramoe.data.splits.distances import EARTH_RADIUS, nearest, positions_of
from terramoe.data.splits.matching import Match, match_distances
from terramoe.data.splits.split import count_rows, deal
from terramoe.errors import SplitError


@dataclass(frozen=True, eq=False)
class PointBlockSplit:
    """Square blocks of points, dealt to the folds so that each class is spread as evenly as possible.

    Args:
        coordinates: (N, 2), see above. block: side of a block, in the unit of the coordinates (metres for degrees).
        n_splits: folds. guard: see above. degrees: coordinates are longitude and latitude.
        times: (N,) numbers or dates. time_guard: in the unit of the times (days for dates).
        seed: breaks ties in the dealing.
    """

    coordinates: np.ndarray
    block: float
    n_splits: int = 5
    guard: float | None = None
    degrees: bool = False
    times: np.ndarray | None = None
    time_guard: float | None = None
    seed: int = 0

    def split(self, X: object, y: object = None, groups: object = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Table X (N rows), classes y or None -> indices of training and test rows, a pair a fold.

        Raises:
            SplitError: sizes that differ, fewer blocks than folds, or a guard that leaves no training point.
        """
        apart = _Guard(self.coordinates, self.guard, self.degrees, self.times, self.time_guard)
        apart.check_rows(X)
        if self.block <= 0 or self.n_splits < 2:
            raise SplitError(
                f"block is {self.block}, with {self.n_splits} folds", where="PointBlockSplit", fix="use more"
            )
        blocks = point_block_ids(self.coordinates, self.block, degrees=self.degrees)
        fold = deal(_classes(y, len(blocks)), blocks, self.n_splits, self.seed)[blocks]
        yield from apart.folds(fold == number for number in range(self.n_splits))

    def get_n_splits(self, X: object = None, y: object = None, groups: object = None) -> int:
        """The number of folds."""
        return self.n_splits


@dataclass(frozen=True, eq=False)
class PointKNNDM:
    """Clusters of points, merged into folds whose test-to-train distances match those of the deployment area.

    kNNDM CV, 2024, doi:10.5194/gmd-17-5897-2024; see ``match_distances``.

    Args:
        coordinates: (N, 2), see above. area: (M, 2) points over the deployment area, in the same unit.
        n_splits: folds. guard, degrees, times, time_guard: see ``PointBlockSplit``.
        seed: see ``match_distances``.
    """

    coordinates: np.ndarray
    area: np.ndarray
    n_splits: int = 5
    guard: float | None = None
    degrees: bool = False
    times: np.ndarray | None = None
    time_guard: float | None = None
    seed: int = 0

    def split(self, X: object, y: object = None, groups: object = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Table X (N rows) -> indices of training and test rows, a pair a fold; SplitError as in PointBlockSplit."""
        apart = self._guard()
        apart.check_rows(X)
        fold = self.match().fold
        yield from apart.folds(fold == number for number in range(self.n_splits))

    def get_n_splits(self, X: object = None, y: object = None, groups: object = None) -> int:
        """The number of folds."""
        return self.n_splits

    def match(self) -> Match:
        """What was matched and how well."""
        positions = positions_of(self.coordinates, degrees=self.degrees)
        area = positions_of(self.area, degrees=self.degrees)
        return match_distances(positions, area, self.n_splits, train_of=self._guard().train_of, seed=self.seed)

    def _guard(self) -> _Guard:
        return _Guard(self.coordinates, self.guard, self.degrees, self.times, self.time_guard)


@dataclass(frozen=True, eq=False)
class LeaveGroupOut:
    """Leave a group out: a region, season, sensor or field, with a guard in space, in time, or both.

    Args:
        groups: (N,) of any type; None takes them from the call, as scikit-learn's ``LeaveOneGroupOut`` does.
        n_splits: None leaves out one group at a time, sorted; a number deals whole groups to so many folds.
        coordinates, guard, degrees, times, time_guard: see ``PointBlockSplit``.
        seed: breaks ties in the dealing.
    """

    groups: np.ndarray | None = None
    n_splits: int | None = None
    coordinates: np.ndarray | None = None
    guard: float | None = None
    degrees: bool = False
    times: np.ndarray | None = None
    time_guard: float | None = None
    seed: int = 0

    def split(self, X: object, y: object = None, groups: object = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Table X (N rows) -> indices of training and test rows, a pair a fold; SplitError as in PointBlockSplit."""
        numbers, folds = self._numbers(groups)
        apart = _Guard(self.coordinates, self.guard, self.degrees, self.times, self.time_guard)
        apart.check_rows(X, len(numbers))
        if folds < 2:
            raise SplitError(f"{folds} groups", where="LeaveGroupOut", fix="give at least 2")
        fold = numbers if self.n_splits is None else deal(_classes(y, len(numbers)), numbers, folds, self.seed)[numbers]
        yield from apart.folds(fold == number for number in range(folds))

    def get_n_splits(self, X: object = None, y: object = None, groups: object = None) -> int:
        """The number of folds."""
        return self._numbers(groups)[1]

    def _numbers(self, groups: object) -> tuple[np.ndarray, int]:
        """Group of each row from 0, and the number of folds."""
        chosen = self.groups if self.groups is not None else groups
        if chosen is None:
            raise SplitError("there are no groups", where="LeaveGroupOut", fix="pass groups=...")
        names, numbers = np.unique(np.asarray(chosen), return_inverse=True)
        return numbers, len(names) if self.n_splits is None else self.n_splits


def point_block_ids(coordinates: np.ndarray, block: float, *, degrees: bool = False) -> np.ndarray:
    """(N,) int from 0: the square block of each point. On the Earth a row of blocks has as many columns as fit."""
    positions_of(coordinates, degrees=degrees)  # checks them
    x, y = np.asarray(coordinates, dtype=np.float64).T
    if degrees:
        metres = np.radians(1) * EARTH_RADIUS  # of one degree of latitude
        rows = np.floor((y + 90) * metres / block)
        middle = np.clip((rows + 0.5) * block / metres - 90, -90, 90)
        columns = np.floor((x % 360) * metres * np.cos(np.radians(middle)) / block)
    else:
        rows, columns = np.floor((y - y.min()) / block), np.floor((x - x.min()) / block)
    return np.unique(np.stack([rows, columns], axis=1), axis=0, return_inverse=True)[1].ravel()


@dataclass(frozen=True, eq=False)
class _Guard:
    """Tells which points may train while others are tested."""

    coordinates: np.ndarray | None
    guard: float | None
    degrees: bool
    times: np.ndarray | None
    time_guard: float | None

    def check_rows(self, X: object, rows: int | None = None) -> None:
        """SplitError unless the table has as many rows as there are coordinates, times and groups."""
        given = {"coordinates": self.coordinates, "times": self.times}
        sizes = {name: len(values) for name, values in given.items() if values is not None}
        sizes |= {} if rows is None else {"groups": rows}
        for name, size in sizes.items():
            if size != count_rows(X):
                raise SplitError(f"{count_rows(X)} rows, {size} {name}", where="split", fix="give one for each row")
        for name, width in (("coordinates", self.guard), ("times", self.time_guard)):
            if width is not None and given[name] is None:
                raise SplitError(f"there is a guard but there are no {name}", where="split", fix=f"give the {name}")

    def train_of(self, test: np.ndarray) -> np.ndarray:
        """(N,) bool that test -> (N,) bool that train."""
        train = ~test
        if self.guard is not None:
            positions = positions_of(self.coordinates, degrees=self.degrees)
            train[train] = nearest(positions[train], positions[test]) > self.guard
        if self.time_guard is not None:
            when = in_days(self.times)[:, None]
            train[train] = nearest(when[train], when[test]) > self.time_guard
        return train

    def folds(self, tests: Iterator[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Indices of training and test rows for each test mask."""
        for number, test in enumerate(tests):
            train = self.train_of(test)
            if not train.any():
                raise SplitError("the guard leaves no training point", where=f"fold {number}", fix="use a smaller one")
            yield np.flatnonzero(train), np.flatnonzero(test)


def in_days(times: np.ndarray) -> np.ndarray:
    """Times as floats: dates as days since 1970, numbers as they are."""
    times = np.asarray(times)
    if times.dtype.kind == "M":
        return times.astype("datetime64[s]").astype(np.float64) / 86_400
    return times.astype(np.float64)


def _classes(y: object, rows: int) -> np.ndarray:
    """(N,) int from 1 for the dealing; all 1 where there are no classes, as in regression."""
    if y is None or np.asarray(y).dtype.kind == "f":
        return np.ones(rows, dtype=np.int64)
    return np.unique(np.asarray(y), return_inverse=True)[1] + 1
