"""Predictions of rows on disk, in the form that the rows came in: a table, a NetCDF file or rasters."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from terramoe.data.row_table import Layout, RowTable
from terramoe.errors import DataError
from terramoe.inference.row_predictor import RowPrediction, RowPredictor
from terramoe.storage import RasterForm, atomic_path, write_checksum, write_cog

if TYPE_CHECKING:
    import pandas as pd

FILES = (".csv", ".tsv", ".parquet")
EXPERT_BANDS = ("expert", "share", "entropy")


def prediction_columns(predictor: RowPredictor, found: RowPrediction) -> dict[str, np.ndarray]:
    """Columns (N,) by name: each target and its standard deviation, class probabilities, and the routing."""
    columns: dict[str, np.ndarray] = {}
    for number, target in enumerate(predictor.target_names):
        values = found.values[:, number]
        named = bool(predictor.class_names) and number == 0
        columns[target] = _names(values, predictor.class_names) if named else values
        if not named:
            columns[f"{target}_std"] = found.std[:, number]
    if found.probability is not None:
        for name, values in zip(predictor.class_names, found.probability.T, strict=True):
            columns[f"p_{name}"] = values
    for layer, values in found.experts.items():
        columns[f"{layer}_expert"] = _names(values[:, 0], predictor.system.expert_names(layer))
        columns |= {f"{layer}_{name}": values[:, band] for band, name in ((1, "share"), (2, "entropy"))}
    return columns


def prediction_frame(table: RowTable, predictor: RowPredictor, found: RowPrediction) -> pd.DataFrame:
    """The predictions beside the place, time and group of each row."""
    import pandas as pd

    known: dict[str, np.ndarray] = {}
    if table.places is not None:
        names = ("longitude", "latitude") if table.degrees else ("x", "y")
        known |= dict(zip(names, table.places.T, strict=True))
    known |= {key: v for key, v in (("time", table.times), ("group", table.groups)) if v is not None}
    return pd.DataFrame(known | prediction_columns(predictor, found))


def write_rows(table: RowTable, predictor: RowPredictor, found: RowPrediction, output: str | Path) -> list[Path]:
    """Write predictions; returns the files.

    A table gives ``output`` itself if that is a CSV or Parquet file, else ``predictions.csv`` in that folder; a raster
    gives ``prediction.tif``, ``uncertainty.tif``, and ``experts-LAYER.tif`` for each routed layer; NetCDF gives
    ``predictions.nc``.

    Raises:
        DataError: the files cannot be written, or a raster or NetCDF file was asked for as a table.
    """
    output, layout = Path(output), table.layout
    as_file = output.suffix.lower() in FILES
    if layout is None or as_file:
        return [
            write_frame(prediction_frame(table, predictor, found), output if as_file else output / "predictions.csv")
        ]
    if layout.transform is not None or set(layout.dims) == {"x", "y"}:
        return _write_rasters(layout, predictor, found, output)
    return [_write_cube(layout, predictor, found, output / "predictions.nc")]


def write_frame(frame: pd.DataFrame, path: Path) -> Path:
    """Write a CSV, TSV or Parquet file atomically, by its suffix."""
    kind = path.suffix.lower()
    with atomic_path(path) as temporary:
        if kind == ".parquet":
            frame.to_parquet(temporary, index=False)
        else:
            frame.to_csv(temporary, index=False, sep="\t" if kind == ".tsv" else ",")
    return path


def _names(numbers: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    """(N,) names of numbers, "" for none."""
    shown = np.array([*names, ""], dtype=object)
    return shown[np.where(np.isfinite(numbers), numbers, -1).astype(np.int64)]


def _write_rasters(layout: Layout, predictor: RowPredictor, found: RowPrediction, folder: Path) -> list[Path]:
    uncertain = [n for n in range(len(predictor.target_names)) if np.isfinite(found.std[:, n]).any()]
    rasters = {"prediction": (found.values, predictor.target_names)}
    if uncertain:
        rasters["uncertainty"] = (found.std[:, uncertain], tuple(predictor.target_names[n] for n in uncertain))
    if found.probability is not None:
        rasters["probability"] = (found.probability, predictor.class_names)
    rasters |= {f"experts-{layer}": (values, EXPERT_BANDS) for layer, values in found.experts.items()}
    paths = []
    for name, (values, bands) in rasters.items():
        ids = name.startswith("experts") or (name == "prediction" and bool(predictor.class_names))
        form = RasterForm(*layout.shape, tuple(bands), "float32", float("nan"), layout.crs, layout.transform, ids)
        path = folder / f"{name}.tif"
        write_cog(path, values.T.reshape(len(bands), *layout.shape).astype(np.float32), form)
        write_checksum(path)
        paths.append(path)
    return paths


def _write_cube(layout: Layout, predictor: RowPredictor, found: RowPrediction, path: Path) -> Path:
    import xarray as xr

    dims = tuple(layout.dims)
    variables = {}
    for name, values in prediction_columns(predictor, found).items():
        variables[name] = (dims, np.asarray(values.tolist()).reshape(layout.shape))
    coordinates = {name: (name, values) for name, values in layout.coordinates.items()}
    try:
        with atomic_path(path) as temporary:
            xr.Dataset(variables, coordinates).to_netcdf(temporary)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot write: {error}", where=path, fix="check space and permissions") from error
    return path
