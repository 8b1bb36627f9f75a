"""Tables of labelled points: CSV or Parquet with a column for each coordinate, the class, and what else is known."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from terramoe.data.splits import positions_of
from terramoe.errors import DataError

SUFFIXES = (".csv", ".tsv", ".txt", ".parquet")
MISSING = ("", "na", "nan", "null", "none")


@dataclass(frozen=True)
class PointTable:
    """Labelled points. N rows.

    Attributes:
        name: for titles.
        coordinates: (N, 2) float64, x and y; longitude and latitude if ``degrees``.
        degrees: distances are great-circle distances in metres.
        labels: (N,) int64, classes 1..K. class_names: a name for each.
        features: (N, F) float64, NaN where missing; None if there are none.
        groups: (N,) str, or None. times: (N,) float64, numbers as in the file or days since 1970, or None.
        dropped: rows of the file that lack a coordinate, the class, the group or the time.
    """

    name: str
    coordinates: np.ndarray
    degrees: bool
    labels: np.ndarray
    class_names: tuple[str, ...]
    features: np.ndarray | None = None
    groups: np.ndarray | None = None
    times: np.ndarray | None = None
    dropped: int = 0

    @property
    def unit(self) -> str:
        """Of distances."""
        return "m" if self.degrees else "units"

    @property
    def positions(self) -> np.ndarray:
        """(N, 2 or 3), see ``splits.distances``."""
        return positions_of(self.coordinates, degrees=self.degrees)


def is_table(path: str | os.PathLike[str]) -> bool:
    """Whether the file is a table, by its name."""
    return Path(path).suffix.lower() in SUFFIXES


def read_points(
    path: str | os.PathLike[str],
    *,
    x: str,
    y: str,
    label: str,
    features: Sequence[str] = (),
    group: str | None = None,
    time: str | None = None,
    degrees: bool | None = None,
) -> PointTable:
    """Read a table of labelled points.

    Args:
        path: CSV (comma, semicolon or tab, with a header), or Parquet if pyarrow is installed.
        x, y, label: columns of the coordinates and the class. features: columns of numbers.
        group, time: columns of the group, and of the time as numbers or ISO dates.
        degrees: the coordinates are longitude and latitude; None: if the columns are called so (lon..., lat...).

    Raises:
        DataError: no such file or column, text where numbers belong, or fewer than two classes.
        SplitError: latitudes beyond 90 degrees.
    """
    columns = _columns(Path(path), [x, y, label, *features, *filter(None, (group, time))])
    place = np.stack([_numbers(columns[name], name, path) for name in (x, y)], axis=1)
    named = columns[label]
    when = None if time is None else _times(columns[time], time, path)
    known = np.isfinite(place).all(axis=1) & (named != "")
    known &= True if group is None else columns[group] != ""
    known &= True if when is None else np.isfinite(when)
    names, ranks = np.unique(named[known], return_inverse=True)
    if len(names) < 2:
        raise DataError(f"column '{label}' holds {len(names)} classes", where=path, fix="label at least two classes")
    if len(names) > known.sum() / 2:
        raise DataError(
            f"column '{label}' holds {len(names)} classes in {known.sum()} rows",
            where=path,
            fix="name a column of classes; numbers to be regressed cannot be audited",
        )
    if degrees is None:
        degrees = x.lower().startswith("lon") and y.lower().startswith("lat")
    table = PointTable(
        name=Path(path).stem,
        coordinates=place[known],
        degrees=degrees,
        labels=ranks.ravel() + 1,
        class_names=tuple(names.tolist()),
        features=np.stack([_numbers(columns[f], f, path)[known] for f in features], axis=1) if features else None,
        groups=None if group is None else columns[group][known],
        times=None if when is None else when[known],
        dropped=int((~known).sum()),
    )
    _ = table.positions  # checks the latitudes
    return table


def read_places(path: str | os.PathLike[str], *, x: str, y: str) -> np.ndarray:
    """(M, 2) coordinates of a table without anything else, such as a deployment area; rows without one are dropped."""
    columns = _columns(Path(path), [x, y])
    place = np.stack([_numbers(columns[name], name, path) for name in (x, y)], axis=1)
    return place[np.isfinite(place).all(axis=1)]


def _columns(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The named columns as text, "" where a value is missing."""
    if not path.is_file():
        raise DataError("there is no such file", where=path, fix="check the path")
    header, rows = _parquet(path, names) if path.suffix.lower() == ".parquet" else _csv(path)
    absent = [name for name in names if name not in header]
    if absent:
        raise DataError(
            f"there is no column '{absent[0]}'", where=path, fix=f"use one of {', '.join(header[:20]) or 'none'}"
        )
    if not rows:
        raise DataError("the table has no rows", where=path, fix="check the file")
    at = {name: header.index(name) for name in names}
    clean = [["" if cell.strip().lower() in MISSING else cell.strip() for cell in row] for row in rows]
    return {name: np.array([row[k] for row in clean]) for name, k in at.items()}


def _csv(path: Path) -> tuple[list[str], list[list[str]]]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            start = file.readline()
            file.seek(0)
            rows = list(csv.reader(file, delimiter=max(",;\t", key=start.count)))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError("this is no UTF-8 text table", where=path, fix="save it as CSV in UTF-8") from error
    header = [name.strip() for name in rows[0]] if rows else []
    body = [row for row in rows[1:] if row]
    short = next((n for n, row in enumerate(body, 2) if len(row) != len(header)), None)
    if short is not None:
        raise DataError(
            f"row {short} has another number of cells than the header ({len(header)})", where=path, fix="mend the file"
        )
    return header, body


def _parquet(path: Path, names: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    if find_spec("pyarrow") is None:
        raise DataError(
            "reading Parquet needs pyarrow", where=path, fix="pip install pyarrow, or save the table as CSV"
        )
    from pyarrow import ArrowException, parquet

    try:
        header = parquet.read_schema(path).names
        wanted = [name for name in dict.fromkeys(names) if name in header]
        columns = parquet.read_table(path, columns=wanted).to_pydict()
    except (ArrowException, OSError) as error:
        raise DataError("this Parquet file is damaged", where=path, fix="save it again") from error
    if len(wanted) < len(set(names)):
        return header, []
    cells = [["" if cell is None else str(cell) for cell in columns[name]] for name in wanted]
    return wanted, [list(row) for row in zip(*cells, strict=True)]


def _numbers(texts: np.ndarray, name: str, path: object) -> np.ndarray:
    """Texts -> float64, NaN where missing."""
    try:
        return np.where(texts == "", "nan", texts).astype(np.float64)
    except ValueError as error:
        raise DataError(f"column '{name}' does not hold numbers: {error}", where=path, fix="name another") from error


def _times(texts: np.ndarray, name: str, path: object) -> np.ndarray:
    """Numbers as they are, dates as days since 1970, NaN where missing."""
    filled = np.where(texts == "", "NaT", texts)
    try:
        return np.where(texts == "", "nan", texts).astype(np.float64)
    except ValueError:
        pass
    try:
        dates = filled.astype("datetime64[s]")
    except ValueError as error:
        raise DataError(
            f"column '{name}' holds neither numbers nor dates", where=path, fix="write dates as 2024-05-31"
        ) from error
    return np.where(np.isnat(dates), np.nan, dates.astype(np.float64) / 86_400)
