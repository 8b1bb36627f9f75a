"""Rows from files: CSV, Parquet, NetCDF and rasters."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from terramoe.data.rasters import MEMORY_GIB, open_raster
from terramoe.data.row_table import Columns, Layout, RowTable, row_table
from terramoe.errors import DataError

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

TABLES, CUBES, RASTERS = (".csv", ".tsv", ".txt", ".parquet"), (".nc", ".nc4", ".cdf"), (".tif", ".tiff")
TARGET = "target"  # column of a target raster with one band


def is_rows(path: str | os.PathLike[str]) -> bool:
    """Whether ``read_rows`` reads such a file, by its name."""
    return Path(path).suffix.lower() in (*TABLES, *CUBES, *RASTERS)


def read_rows(
    path: str | os.PathLike[str],
    columns: Columns,
    *,
    target_raster: str | os.PathLike[str] | None = None,
    dims: Sequence[str] = (),
    max_gib: float = MEMORY_GIB,
) -> RowTable:
    """Read a file whose rows are samples.

    - CSV (comma, semicolon or tab, with a header) and Parquet: as they are.
    - NetCDF: a row for each point of ``dims``; every variable is a column, and one that has further dimensions gives a
      column for each point of these, named such as ``Rrs_0``, ``Rrs_1``.
    - GeoTIFF: a row a pixel, with the bands' names or ``band_1`` ... as columns, and ``x`` and ``y`` of the pixel in
      the raster's reference system (``longitude`` and ``latitude`` if that is geographic).

    Args:
        target_raster: for a raster: another one on the same grid, whose bands are the targets; nodata is missing. Its
            band is called ``target``, or its bands ``target_1`` ...
        dims: of a NetCDF file, what a row is; () takes the dimensions of the first target, or without targets those
            that all variables share.
        max_gib: refuse larger files.

    Raises:
        DataError: no such file, a damaged one, another grid, or what ``row_table`` raises.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError("there is no such file", where=path, fix="check the path")
    kind = path.suffix.lower()
    if target_raster is not None and kind not in RASTERS:
        raise DataError("a target raster needs a raster", where=path, fix="name the target column with --target")
    if kind in RASTERS:
        frame, layout = _raster(path, target_raster, max_gib)
        if target_raster is not None and not columns.targets:
            targets = tuple(c for c in frame.columns if c == TARGET or c.startswith(f"{TARGET}_"))
            columns = replace(columns, targets=targets)
        return row_table(frame, columns, name=path.stem, layout=layout)
    if path.stat().st_size > max_gib * 2**30:
        size = path.stat().st_size / 2**30
        raise DataError(f"the file has {size:.1f} GiB", where=path, fix=f"cut it, or allow more than {max_gib:g}")
    if kind in CUBES:
        frame, layout = _cube(path, columns, dims)
        return row_table(frame, columns, name=path.stem, layout=layout)
    if kind in TABLES:
        return row_table(_table(path), columns, name=path.stem)
    raise DataError(f"'{kind}' is no table", where=path, fix=f"use {', '.join((*TABLES, *CUBES, *RASTERS))}")


def _table(path: Path) -> pd.DataFrame:
    import pandas as pd
    from pyarrow import ArrowException

    try:
        if path.suffix.lower() == ".parquet":
            return pd.read_parquet(path)
        with open(path, encoding="utf-8-sig") as file:
            header = file.readline()
        return pd.read_csv(path, sep=max(",;\t", key=header.count), encoding="utf-8-sig", skipinitialspace=True)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, ArrowException, OSError) as error:
        what = str(error).strip().splitlines()[0]
        raise DataError(f"the table cannot be read: {what}", where=path, fix="mend the file") from error


def _raster(path: Path, target: str | os.PathLike[str] | None, max_gib: float) -> tuple[pd.DataFrame, Layout]:
    import pandas as pd

    with open_raster(path, max_gib=max_gib) as raster:
        layout = Layout({"y": raster.height, "x": raster.width}, {}, raster.crs, raster.transform)
        pixels, valid = raster.read(0, 0, raster.height, raster.width)
        names = [name or f"band_{n}" for n, name in enumerate(raster.band_names or [""] * raster.bands, 1)]
    columns = dict(zip(names, np.where(valid, pixels.astype(np.float64), np.nan).reshape(len(names), -1), strict=True))
    if target is not None:
        with open_raster(target, max_gib=max_gib) as other:
            if (other.height, other.width) != layout.shape:
                raise DataError(
                    f"the grid is {other.height} x {other.width}, the image's {raster.height} x {raster.width}",
                    where=target,
                    fix="bring both to one grid",
                )
            values, known = other.read(0, 0, other.height, other.width)
        titles = [TARGET] if len(values) == 1 else [f"{TARGET}_{n}" for n in range(1, len(values) + 1)]
        columns |= dict(
            zip(titles, np.where(known, values.astype(np.float64), np.nan).reshape(len(titles), -1), strict=True)
        )
    return pd.DataFrame(places_of(layout) | columns), layout


def places_of(layout: Layout) -> dict[str, np.ndarray]:
    """Columns of the pixel centres of a raster; in pixels if it is not georeferenced."""
    rows, columns = np.indices(layout.shape).reshape(2, -1) + 0.5
    if layout.transform is None or layout.crs is None:
        return {"x": columns, "y": rows}
    t = layout.transform
    x, y = t.c + t.a * columns + t.b * rows, t.f + t.d * columns + t.e * rows
    names = ("longitude", "latitude") if layout.crs.is_geographic else ("x", "y")
    return dict(zip(names, (x, y), strict=True))


def _cube(path: Path, columns: Columns, dims: Sequence[str]) -> tuple[pd.DataFrame, Layout]:
    import pandas as pd
    import xarray as xr

    try:
        with xr.open_dataset(path) as opened:
            data = opened.load()
    except (OSError, ValueError) as error:
        raise DataError(f"the file cannot be read: {error}", where=path, fix="save it as NetCDF 4") from error
    if not data.data_vars:
        raise DataError("the file has no variables", where=path, fix="check the file")
    chosen = list(dims) or _row_dims(data, columns)
    lost = [d for d in chosen if d not in data.sizes]
    if lost or not chosen:
        found = ", ".join(map(str, data.sizes))
        raise DataError(f"a row cannot be a point of {lost or 'no dimension'}", where=path, fix=f"--dims of {found}")
    sizes = {d: data.sizes[d] for d in chosen}
    found: dict[str, np.ndarray] = {}
    for name, variable in {**data.coords, **data.data_vars}.items():
        if not set(variable.dims) & set(chosen):
            continue  # such as wavelengths: of columns, not of rows
        for title, values in _columns_of(str(name), variable, sizes):
            found[title] = values
    coordinates = {d: data[d].to_numpy() for d in chosen if d in data.coords}
    return pd.DataFrame(found), Layout(sizes, coordinates)


def _row_dims(data: xr.Dataset, columns: Columns) -> list[str]:
    """Dimensions of the first target; without targets, those that all variables share."""
    if columns.targets and columns.targets[0] in data:
        return [str(d) for d in data[columns.targets[0]].dims]
    variables = list(data.data_vars.values())
    return [str(d) for d in variables[0].dims if all(d in v.dims for v in variables)]


def _columns_of(name: str, variable: xr.DataArray, sizes: dict[str, int]) -> list[tuple[str, np.ndarray]]:
    """The columns of one variable, spread over all rows."""
    further = [d for d in variable.dims if d not in sizes]
    spread = variable.variable.set_dims({**{d: variable.sizes[d] for d in further}, **sizes}).transpose(
        *further, *sizes
    )
    values = spread.to_numpy().reshape(-1, int(np.prod(list(sizes.values()))))
    if not further:
        return [(name, values[0])]
    return [(f"{name}_{number}", column) for number, column in enumerate(values)]
