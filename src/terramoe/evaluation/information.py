"""Mutual information of integer codes, and the shuffle that chance is measured by."""

from __future__ import annotations

import numpy as np
from scipy import ndimage


def codes(values: np.ndarray) -> np.ndarray:
    """(N,) values -> (N,) codes 0..C-1 in their sorted order."""
    return np.unique(values, return_inverse=True)[1].reshape(-1)


def nats(counts: np.ndarray) -> float:
    """Entropy of a histogram of any shape, in nats."""
    filled = counts[counts > 0]
    total = filled.sum()
    return float(np.log(total) - (filled * np.log(filled)).sum() / total) if total else 0.0


def information(a: np.ndarray, b: np.ndarray, given: np.ndarray | None = None) -> float:
    """Mutual information of two (N,) code arrays in nats, within the groups of a third if there is one."""
    table = _table(a, b, given)
    found = nats(table.sum(2)) + nats(table.sum(1)) - nats(table) - nats(table.sum((1, 2)))
    return max(found, 0.0)  # rounding


def largest(a: np.ndarray, b: np.ndarray, given: np.ndarray | None = None) -> float:
    """The most that ``information`` could be: the smaller of the two entropies."""
    table = _table(a, b, given)
    return min(nats(table.sum(2)), nats(table.sum(1))) - nats(table.sum((1, 2)))


def _table(a: np.ndarray, b: np.ndarray, given: np.ndarray | None) -> np.ndarray:
    """(groups, A, B) counts."""
    shape = (1 if given is None else int(given.max()) + 1, int(a.max()) + 1, int(b.max()) + 1)
    joint = a * shape[2] + b
    joint = joint if given is None else joint + given * (shape[1] * shape[2])
    return np.bincount(joint, minlength=int(np.prod(shape))).reshape(shape)


class UnitShuffle:
    """Chance for factors that change from unit to unit: exchanges the contents of independent units.

    What lies within a unit stays together, so that neighbours remain as alike as they were; only the tie between the
    unit's content and its place is cut. Units of unequal size are stretched: the item at half of one unit gets what
    stood at half of the other.

    Args:
        units: (N,) ids; items in reading order, so that what is near in a unit is near in the array.
    """

    def __init__(self, units: np.ndarray) -> None:
        self._unit = codes(units)
        self._order = np.argsort(self._unit, kind="stable")
        self._size = np.bincount(self._unit)
        self._start = np.cumsum(self._size) - self._size
        self._rank = np.empty_like(self._unit)
        self._rank[self._order] = np.arange(len(units)) - self._start[self._unit[self._order]]

    def draw(self, generator: np.random.Generator) -> np.ndarray:
        """(N,) positions: ``experts[positions]`` are the shuffled experts."""
        source = generator.permutation(len(self._size))[self._unit]
        rank = self._rank * self._size[source] // self._size[self._unit]
        return self._order[self._start[source] + rank]


class MapShift:
    """Chance for factors that change over a map: moves the map of experts against them.

    Every neighbourhood stays as it was, however far the likeness reaches, also beyond blocks. What leaves the map on
    one side comes back as in a mirror. Joining opposite edges instead would put a seam into every moved map but not
    into the observed one, which then looks too orderly: by simulation "place" was found in up to a third of the maps
    where nothing was planted. Holes take the nearest expert.

    Args:
        positions: (N, 2) row and column, or (N, 3) image, row and column; all images move together.
    """

    def __init__(self, positions: np.ndarray) -> None:
        columns = positions if positions.shape[1] == 3 else np.insert(positions, 0, 0, axis=1)
        image, row, column = (columns - columns.min(0)).T
        image = codes(image)
        self._at = image, row, column
        self._source = np.empty((image.max() + 1, row.max() + 1, column.max() + 1), dtype=np.int64)
        for number, source in enumerate(self._source):
            mine = np.flatnonzero(image == number)
            hole = np.ones(source.shape, dtype=bool)
            hole[row[mine], column[mine]] = False
            source[row[mine], column[mine]] = mine
            nearest = ndimage.distance_transform_edt(hole, return_distances=False, return_indices=True)
            source[...] = source[tuple(nearest)]

    def draw(self, generator: np.random.Generator) -> np.ndarray:
        """(N,) positions: ``experts[positions]`` are the moved experts."""
        image, row, column = self._at
        _, height, width = self._source.shape
        return self._source[image, _moved(row, height, generator), _moved(column, width, generator)]


def _moved(index: np.ndarray, size: int, generator: np.random.Generator) -> np.ndarray:
    """Indices 0..size-1 moved by one random step, back and forth between two mirrors."""
    index = (index + generator.integers(2 * size)) % (2 * size)
    return np.minimum(index, 2 * size - 1 - index)
