"""Rasters on disk: written window by window, ending as a Cloud Optimized GeoTIFF under their final name."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.shutil import copy as copy_raster
from rasterio.windows import Window

from terramoe.errors import DataError
from terramoe.storage.atomic import atomic_path

if TYPE_CHECKING:
    from affine import Affine
    from rasterio.crs import CRS


@dataclass(frozen=True)
class RasterForm:
    """Everything about a raster to be written but its pixels.

    Attributes:
        ids: the values are ids: overviews take the nearest value instead of an average.
        colours: value -> (red, green, blue), for 8-bit single-band rasters.
    """

    height: int
    width: int
    band_names: tuple[str, ...]
    dtype: str
    nodata: float
    crs: CRS | None = None
    transform: Affine | None = None
    ids: bool = False
    colours: Mapping[int, tuple[int, int, int]] | None = None


class RasterWriter:
    """Takes blocks of a raster in any order."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def write(self, row: int, column: int, block: np.ndarray) -> None:
        """Write (bands, h, w) with its upper left pixel at (row, column)."""
        self._dataset.write(block, window=Window(column, row, block.shape[2], block.shape[1]))


@contextmanager
def cog_writer(path: str | Path, form: RasterForm) -> Iterator[RasterWriter]:
    """Open a raster for writing; when the block ends without error, a valid COG stands under ``path``.

    A COG cannot be written in arbitrary order, so the blocks go to a tiled GeoTIFF first, which GDAL then copies.

    Raises:
        DataError: the file cannot be written. What stood there before is kept.
    """
    resampling = "nearest" if form.ids else "average"
    try:
        with quiet_without_georeference(), atomic_path(path) as final:
            tiled = final.with_name(f"{final.stem}-tiled.tif")
            try:
                with rasterio.open(tiled, "w", **_profile(form)) as dataset:
                    dataset.descriptions = form.band_names
                    if form.colours:
                        dataset.write_colormap(1, dict(form.colours))
                    yield RasterWriter(dataset)
                options = {"compress": "DEFLATE", "overview_resampling": resampling, "BIGTIFF": "IF_SAFER"}
                copy_raster(tiled, final, driver="COG", **options)
            finally:
                tiled.unlink(missing_ok=True)
    except (RasterioError, OSError) as error:
        raise DataError(f"cannot write the raster: {error}", where=path, fix="check space and permissions") from error


def write_cog(path: str | Path, pixels: np.ndarray, form: RasterForm) -> None:
    """Write (bands, H, W) at once."""
    with cog_writer(path, form) as writer:
        writer.write(0, 0, pixels)


@contextmanager
def quiet_without_georeference() -> Iterator[None]:
    """Silence rasterio's warning about rasters without coordinates: scenes in image coordinates are normal here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


def _profile(form: RasterForm) -> dict[str, Any]:
    profile: dict[str, Any] = {
        "driver": "GTiff",
        "height": form.height,
        "width": form.width,
        "count": len(form.band_names),
        "dtype": form.dtype,
        "nodata": form.nodata,
        "crs": form.crs,
        "compress": "DEFLATE",
        "tiled": True,
        "blockxsize": 256,
        "blockysize": 256,
        "BIGTIFF": "IF_SAFER",
    }
    return profile if form.transform is None else profile | {"transform": form.transform}
