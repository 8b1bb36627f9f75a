"""Samples as rows: a table of numbers with targets, and what is known of each row's place, time and group."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import numpy as np

from terramoe.errors import DataError

if TYPE_CHECKING:
    import pandas as pd
    from affine import Affine
    from rasterio.crs import CRS

LONGITUDES, LATITUDES = ("longitude", "lon", "long", "x"), ("latitude", "lat", "y")
TIMES = ("time", "date", "datetime")


@dataclass(frozen=True)
class Layout:
    """How rows lie in the file that they came from.

    Attributes:
        dims: names of the file's dimensions, and how many values each has; rows run through them, the last fastest.
        coordinates: (size,) values along a dimension, for those that have them.
        crs, transform: of a raster, whose dimensions are "y" and "x".
    """

    dims: Mapping[str, int]
    coordinates: Mapping[str, np.ndarray]
    crs: CRS | None = None
    transform: Affine | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.dims.values())


@dataclass(frozen=True)
class RowTable:
    """N rows.

    Attributes:
        name: for titles.
        features: (N, F) float64, NaN where missing. feature_names: F.
        targets: (N, T) float64, NaN where missing; a class is its number in ``class_names``. target_names: T.
        class_names: of the first target if that is a class, else ().
        places: (N, 2) longitude and latitude if ``degrees``, else x and y in metres; None if unknown.
        times: (N,) days since 1970, or numbers as in the file, or None.
        groups: (N,) str, or None.
        layout: None for a plain table.
    """

    name: str
    features: np.ndarray
    feature_names: tuple[str, ...]
    targets: np.ndarray
    target_names: tuple[str, ...]
    class_names: tuple[str, ...] = ()
    places: np.ndarray | None = None
    degrees: bool = False
    times: np.ndarray | None = None
    groups: np.ndarray | None = None
    layout: Layout | None = None

    def __len__(self) -> int:
        return len(self.features)

    def at(self, rows: np.ndarray) -> RowTable:
        """Some of the rows: a mask or indices (M,). The layout is lost."""
        known = {name: getattr(self, name) for name in ("features", "targets", "places", "times", "groups")}
        return replace(self, layout=None, **{k: None if v is None else v[rows] for k, v in known.items()})

    def numbers_digest(self) -> str:
        """SHA-256 of features and targets alone: the same where places, times or groups are not named."""
        sha = hashlib.sha256(np.ascontiguousarray(self.features))
        sha.update(np.ascontiguousarray(self.targets))
        return sha.hexdigest()

    def digest(self) -> str:
        """SHA-256 of all that a training can see."""
        sha = hashlib.sha256(repr((self.feature_names, self.target_names, self.class_names, self.degrees)).encode())
        for values in (self.features, self.targets, self.places, self.times, self.groups):
            content = b"" if values is None else np.ascontiguousarray(values)
            sha.update(content if values is None or values.dtype.kind != "U" else repr(values.tolist()).encode())
        return sha.hexdigest()


@dataclass(frozen=True)
class Columns:
    """Which columns are what. Names may hold ``*``, which stands for any letters; order is the file's.

    Attributes:
        targets: to be predicted; () for none.
        features: to predict from; None takes every column of numbers that is nothing else.
        longitude, latitude, time, group: None takes a column of a usual name, such as "lat", if there is one (of groups
            there is no usual name).
        classes: the first target is a class.
    """

    targets: tuple[str, ...] = ()
    features: tuple[str, ...] | None = None
    longitude: str | None = None
    latitude: str | None = None
    time: str | None = None
    group: str | None = None
    classes: bool = False


def row_table(frame: pd.DataFrame, columns: Columns, *, name: str, layout: Layout | None = None) -> RowTable:
    """A data frame, a row a sample, as numbers.

    Raises:
        DataError: a column that is not there, text where numbers belong, or no features.
    """
    if frame.empty:
        raise DataError("the table has no rows", where=name, fix="check the file")
    longitude = _usual(frame, columns.longitude, LONGITUDES, name)
    latitude = _usual(frame, columns.latitude, LATITUDES, name)
    time = _usual(frame, columns.time, TIMES, name)
    targets = _matching(frame, columns.targets, name)
    taken = {longitude, latitude, time, columns.group, *targets}
    if columns.features is None:
        features = [c for c in frame.columns if c not in taken and frame[c].dtype.kind in "iufb"]
    else:
        features = _matching(frame, columns.features, name)
    if not features:
        raise DataError("there is no column of numbers to predict from", where=name, fix="name columns with --features")
    both = set(features) & set(targets)
    if both:
        raise DataError(f"column '{min(both)}' is feature and target", where=name, fix="take it out of one of them")
    named = columns.classes and bool(targets)
    classes, codes = _classes(frame[targets[0]]) if named else ((), None)
    values = [_numbers(frame[t], t, name) for t in (targets[1:] if named else targets)]
    places = None
    if longitude and latitude:
        places = np.stack([_numbers(frame[c], c, name) for c in (longitude, latitude)], axis=1)
    return RowTable(
        name=name,
        features=np.stack([_numbers(frame[f], f, name) for f in features], axis=1),
        feature_names=tuple(features),
        targets=np.stack([codes, *values] if named else values, axis=1) if targets else np.empty((len(frame), 0)),
        target_names=tuple(targets),
        class_names=classes,
        places=places,
        degrees=places is not None and latitude.lower().startswith("lat"),
        times=None if time is None else _times(frame[time], time, name),
        groups=None if columns.group is None else _text(frame[_present(frame, columns.group, name)]),
        layout=layout,
    )


def _usual(frame: pd.DataFrame, chosen: str | None, usual: Sequence[str], where: str) -> str | None:
    """The chosen column, or one of a usual name."""
    if chosen is not None:
        return _present(frame, chosen, where)
    by_name = {str(column).lower(): column for column in reversed(frame.columns)}
    return next((by_name[name] for name in usual if name in by_name), None)


def _present(frame: pd.DataFrame, column: str, where: str) -> str:
    if column not in frame.columns:
        shown = ", ".join(map(str, frame.columns[:20]))
        raise DataError(f"there is no column '{column}'", where=where, fix=f"use one of {shown}")
    return column


def _matching(frame: pd.DataFrame, patterns: Sequence[str], where: str) -> list[str]:
    """Columns that match, pattern by pattern, each once."""
    found: dict[str, None] = {}
    for pattern in patterns:
        hits = [c for c in frame.columns if fnmatchcase(str(c), pattern)]
        found |= dict.fromkeys(hits or [_present(frame, pattern, where)])
    return list(found)


def _numbers(column: pd.Series, name: str, where: str) -> np.ndarray:
    """(N,) float64, NaN where missing."""
    try:
        return column.to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise DataError(f"column '{name}' does not hold numbers: {error}", where=where, fix="name another") from error


def _times(column: pd.Series, name: str, where: str) -> np.ndarray:
    """Numbers as they are, dates as days since 1970, NaN where missing."""
    import pandas as pd

    if column.dtype.kind in "iuf":
        return _numbers(column, name, where)
    try:
        dates = pd.to_datetime(column, format="ISO8601").to_numpy(dtype="datetime64[s]")
    except (TypeError, ValueError) as error:
        raise DataError(
            f"column '{name}' holds neither numbers nor dates", where=where, fix="write dates as 2024-05-31"
        ) from error
    return np.where(np.isnat(dates), np.nan, dates.astype(np.float64) / 86_400)


def _text(column: pd.Series) -> np.ndarray:
    return column.astype(str).to_numpy(dtype=np.str_)


def _classes(column: pd.Series) -> tuple[tuple[str, ...], np.ndarray]:
    """Names in order, and (N,) float64 number of each row's, NaN where missing."""
    missing = column.isna().to_numpy()
    values, codes = np.unique(column[~missing].to_numpy(), return_inverse=True)
    numbers = np.full(len(column), np.nan)
    numbers[~missing] = codes
    whole = [int(v) if isinstance(v, float | np.floating) and float(v).is_integer() else v for v in values.tolist()]
    return tuple(map(str, whole)), numbers
