"""Label rasters: one class value per pixel, 0 where there is none."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from terramoe.data.arrays import open_mat
from terramoe.data.rasters import MEMORY_GIB, open_raster
from terramoe.errors import DataError

LARGEST_VALUE = 65_535  # what the prediction raster can hold


def read_labels(
    path: str | os.PathLike[str], *, height: int, width: int, variable: str | None = None, max_gib: float = MEMORY_GIB
) -> np.ndarray:
    """Class values (H, W) int64 of a label raster in any format that ``open_raster`` reads; nodata becomes 0.

    Raises:
        DataError: another size than ``height`` x ``width``, more than one band, fractions, values below 0 or above
            65535.
    """
    path = Path(path)
    if path.suffix.lower() == ".mat" and path.is_file():
        values = open_mat(path, variable, max_gib, dims=(2,)).astype(np.float64)
        valid = np.isfinite(values)
    else:
        with open_raster(path, max_gib=max_gib) as raster:
            if raster.bands != 1:
                raise DataError(
                    f"a label raster has 1 band, this has {raster.bands}", where=path, fix="select the band"
                )
            values, valid = raster.read(0, 0, raster.height, raster.width)
            values = values[0]
    if values.shape != (height, width):
        raise DataError(
            f"the labels are {values.shape[0]} x {values.shape[1]}, the image is {height} x {width}",
            where=path,
            fix="bring both to the same grid",
        )
    values = np.where(valid, values, 0)
    if (values != np.round(values)).any():
        raise DataError("the labels are not whole numbers", where=path, fix="store class ids as integers")
    if values.min(initial=0) < 0 or values.max(initial=0) > LARGEST_VALUE:
        raise DataError(
            f"label values run from {values.min():g} to {values.max():g}",
            where=path,
            fix=f"use 0 for unlabelled and 1..{LARGEST_VALUE} for classes, or declare the nodata value",
        )
    return values.astype(np.int64)
