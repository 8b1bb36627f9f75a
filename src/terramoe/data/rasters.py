"""Rasters of any supported format behind one small interface, read window by window."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np

from terramoe.data.arrays import open_mat, open_npy
from terramoe.data.gdal import GdalPixels
from terramoe.errors import DataError

if TYPE_CHECKING:
    from affine import Affine
    from rasterio.crs import CRS

STREAM_GIB = 64.0  # budget of a raster that is read by window
MEMORY_GIB = 8.0  # budget of a scene that is read whole


class Pixels(Protocol):
    """Where the pixels of a raster come from."""

    def read(self, row: int, column: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """(bands, h, w) in the file's type, and (h, w) bool, False where the file declares nodata."""

    def read_available(self, row: int, column: int, height: int, width: int) -> np.ndarray | None:
        """(sensors, h, w) bool: which sensors a pixel has; None where the pixels do not say."""

    def close(self) -> None:
        """Release the file."""


@dataclass(frozen=True)
class Raster:
    """An open raster. Use it as a context manager.

    Attributes:
        path: the file.
        bands, height, width: its size.
        crs, transform, nodata: georeference and nodata value, None where the file has none.
        band_names: "" where a band has no name.
    """

    path: Path
    bands: int
    height: int
    width: int
    pixels: Pixels
    crs: CRS | None = None
    transform: Affine | None = None
    nodata: float | None = None
    band_names: tuple[str, ...] = ()

    def read(self, row: int, column: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """One window.

        Returns:
            float32 (bands, h, w), 0 in invalid pixels, and valid (h, w) bool: all bands finite and none nodata.

        Raises:
            DataError: the window cannot be read (a corrupt or truncated file); names file and window.
        """
        values, valid = self.pixels.read(row, column, height, width)
        values = values.astype(np.float32)
        valid = valid & np.isfinite(values).all(axis=0)
        return np.where(valid, values, np.float32(0)), valid

    def read_available(self, row: int, column: int, height: int, width: int, sensors: int) -> np.ndarray:
        """(sensors, h, w) bool of one window; True where the file does not say. DataError for another number."""
        found = self.pixels.read_available(row, column, height, width)
        if found is None:
            return np.ones((sensors, height, width), dtype=bool)
        if len(found) != sensors:
            raise DataError(f"{len(found)} sensors for a model of {sensors}", where=self.path, fix="give the model's")
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.pixels.close()


def open_raster(path: str | os.PathLike[str], *, variable: str | None = None, max_gib: float = STREAM_GIB) -> Raster:
    """Open a GeoTIFF, ENVI file, PNG, MATLAB .mat (version 4 or 5) or .npy; nothing but the header is read.

    Args:
        path: a local file. For ENVI the data file or its header.
        variable: the array of a .mat file; needed if it holds several cubes.
        max_gib: refuse rasters that would take more than this as float32, by their header.

    Raises:
        DataError: the file is missing, damaged, of another format, or over the budget.
    """
    path = Path(path)
    if not path.exists():
        raise DataError("there is no such file", where=path, fix="check the path")
    if path.is_dir():
        raise DataError("this is a folder", where=path, fix="name the raster file itself")
    if path.stat().st_size == 0:
        raise DataError("the file is empty", where=path, fix="copy or download it again")
    if path.suffix.lower() == ".mat":
        raster = _from_array(path, open_mat(path, variable, max_gib))
    elif path.suffix.lower() == ".npy":
        raster = _from_array(path, open_npy(path))
    else:
        pixels = GdalPixels(path)
        raster = Raster(
            path, *pixels.shape, pixels, pixels.crs, pixels.transform, pixels.nodata, band_names=pixels.band_names
        )
    gib = 4 * raster.bands * raster.height * raster.width / 2**30
    if gib > max_gib:
        raster.pixels.close()
        raise DataError(
            f"{raster.bands} x {raster.height} x {raster.width} values take {gib:.1f} GiB, the budget is {max_gib:g}",
            where=path,
            fix="crop the raster, or raise --max-gib if the file is really that large",
        )
    return raster


def raster_of(name: str, image: np.ndarray, valid: np.ndarray, available: np.ndarray | None = None) -> Raster:
    """An image (bands, H, W) in memory behind the interface of a file.

    Args:
        valid: (H, W) bool. available: (sensors, H, W) bool, which sensors a pixel has, None if it has them all.
    """
    pixels = _ArrayPixels(np.moveaxis(image, 0, 2), valid, available)
    return Raster(Path(name), *image.shape, pixels, band_names=("",) * len(image))


@dataclass(frozen=True)
class _ArrayPixels:
    array: np.ndarray  # (H, W, bands)
    valid: np.ndarray | None = None
    available: np.ndarray | None = None

    def read(self, row: int, column: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        window = (slice(row, row + height), slice(column, column + width))
        values = np.moveaxis(np.asarray(self.array[window]), 2, 0)
        return values, np.ones(values.shape[1:], dtype=bool) if self.valid is None else self.valid[window]

    def read_available(self, row: int, column: int, height: int, width: int) -> np.ndarray | None:
        return None if self.available is None else self.available[:, row : row + height, column : column + width]

    def close(self) -> None:
        """An array needs no closing."""


def _from_array(path: Path, array: np.ndarray) -> Raster:
    cube = array[:, :, None] if array.ndim == 2 else array
    return Raster(
        path, cube.shape[2], cube.shape[0], cube.shape[1], _ArrayPixels(cube), band_names=("",) * cube.shape[2]
    )
