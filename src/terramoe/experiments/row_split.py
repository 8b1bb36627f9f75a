"""How test rows are kept apart from training rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from terramoe.data.row_table import RowTable
from terramoe.data.splits import LeaveGroupOut, PointBlockSplit
from terramoe.data.splits.points import point_block_ids
from terramoe.errors import SplitError

Kind = Literal["auto", "block", "group", "time", "random"]
BLOCKS_ACROSS = 10  # a block is this part of the longer side of the area, unless said otherwise
DEGREE = 111_195.0  # metres of one degree of latitude


@dataclass(frozen=True)
class RowSplitSettings:
    """How test rows are kept apart.

    Attributes:
        kind: "block" (squares on the ground), "group" (whole groups, such as fields, cruises or counties), "time" (the
            latest rows test), "random" (a control that leaks); "auto" takes the first of group, block and time that the
            table can have.
        folds: seed s tests fold s modulo folds; a split by time has one fold, of the last 1 / folds of the times.
        block: side of a block in metres (the unit of x and y); None for a tenth of the area's longer side.
        guard: metres without training around test rows. time_guard: days, or the unit of the times.
        seed: of the dealing.
    """

    kind: Kind = "auto"
    folds: int = 5
    block: float | None = None
    guard: float | None = None
    time_guard: float | None = None
    seed: int = 0


@dataclass(frozen=True)
class RowFold:
    """Indices of rows that train and that test, and the unit (M,) that each test row is drawn with in a bootstrap."""

    train: np.ndarray
    test: np.ndarray
    unit: np.ndarray


def kind_of(settings: RowSplitSettings, table: RowTable) -> str:
    """The kind of split; SplitError if the table lacks what it needs."""
    has = {"group": table.groups is not None, "block": table.places is not None, "time": table.times is not None}
    if settings.kind == "auto":
        found = next((kind for kind, there in has.items() if there), None)
        if found is None:
            raise SplitError(
                "the table has neither groups, places nor times",
                where=table.name,
                fix="name columns with --group, --longitude and --latitude, or --time; or --split random, a control",
            )
        return found
    if not has.get(settings.kind, True):
        column = {"group": "--group", "block": "--longitude and --latitude", "time": "--time"}[settings.kind]
        raise SplitError(f"a split by {settings.kind} needs {column}", where=table.name, fix="name the column")
    return settings.kind


def row_folds(settings: RowSplitSettings, table: RowTable) -> list[RowFold]:
    """The folds of a table.

    Raises:
        SplitError: what the split needs is missing, there are fewer blocks or groups than folds, or the guard leaves no
            training row.
    """
    kind = kind_of(settings, table)
    if settings.folds < 2:
        raise SplitError(f"{settings.folds} folds", where="split", fix="use 2 or more")
    unit = _units(settings, table, kind)
    return [RowFold(train, test, unit[test]) for train, test in _pairs(settings, table, kind)]


def _pairs(settings: RowSplitSettings, table: RowTable, kind: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    classes = table.targets[:, 0].astype(np.int64) if table.class_names else None
    near = {"guard": settings.guard, "times": table.times, "time_guard": settings.time_guard}
    if kind == "block":
        block = block_side(settings, table)
        yield from PointBlockSplit(
            table.places, block, settings.folds, degrees=table.degrees, seed=settings.seed, **near
        ).split(table.features, classes)
    elif kind == "group":
        yield from LeaveGroupOut(
            table.groups, settings.folds, table.places, degrees=table.degrees, seed=settings.seed, **near
        ).split(table.features, classes)
    elif kind == "time":
        yield _latest(settings, table)
    else:
        fold = np.random.default_rng(settings.seed).permutation(len(table)) % settings.folds
        yield from ((np.flatnonzero(fold != n), np.flatnonzero(fold == n)) for n in range(settings.folds))


def _latest(settings: RowSplitSettings, table: RowTable) -> tuple[np.ndarray, np.ndarray]:
    when = np.unique(table.times)
    if len(when) < 2:
        raise SplitError("all rows have one time", where=table.name, fix="use another kind of split")
    first = when[min(len(when) - max(1, round(len(when) / settings.folds)), len(when) - 1)]
    train = table.times < first - (settings.time_guard or 0)
    if not train.any():
        raise SplitError("the guard leaves no training row", where=table.name, fix="use a smaller --split.time_guard")
    return np.flatnonzero(train), np.flatnonzero(table.times >= first)


def block_side(settings: RowSplitSettings, table: RowTable) -> float:
    """In metres, or the unit of x and y."""
    if settings.block is not None:
        return settings.block
    longest = float(np.ptp(table.places, axis=0).max()) * (DEGREE if table.degrees else 1.0)
    return max(longest / BLOCKS_ACROSS, 1e-9)


def _units(settings: RowSplitSettings, table: RowTable, kind: str) -> np.ndarray:
    """(N,) int: rows of one unit are no independent tests."""
    if kind == "random":
        return np.arange(len(table))
    if table.groups is not None and kind != "block":
        return np.unique(table.groups, return_inverse=True)[1].ravel()
    if table.places is not None:
        return point_block_ids(table.places, block_side(settings, table), degrees=table.degrees)
    return np.unique(table.times, return_inverse=True)[1].ravel()
