"""A raster brought onto the grid of another, window by window, with its nodata kept apart from its data."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from rasterio.errors import RasterioError
from rasterio.warp import Resampling, reproject, transform
from rasterio.windows import Window
from rasterio.windows import transform as transform_of

from terramoe.errors import DataError

if TYPE_CHECKING:
    from affine import Affine

    from terramoe.data.rasters import Raster

BLOCK = 128  # side in pixels of what is resampled at once
MOST_READ = 2048  # side in pixels of what is read for it, about: a much finer raster has smaller blocks
LATTICE = 9  # points on a side of a block whose places are looked up, for grids that bend against each other


def onto_grid(raster: Raster, grid: Raster) -> Raster:
    """A raster on the pixels of another, resampled when it is read.

    Finer pixels are averaged by the area that lies under a pixel of the grid; the pixel has data if half of that area
    has. Coarser or equally large ones are interpolated bilinearly between the pixels with data; the pixel has data if
    the nearest one has. Beyond the raster there is no data. Whole blocks of the grid are resampled, so that every
    window gives the same bits; memory does not grow with either raster.

    Args:
        raster: is closed with the new one. grid: gives size, transform and coordinate system.

    Raises:
        DataError: one has no georeference, or the two do not overlap.
    """
    where = f"{raster.path.name} and {grid.path.name}"
    if None in (raster.transform, grid.transform) or raster.crs is grid.crs is None:
        raise DataError(
            f"{raster.height} x {raster.width} pixels beside {grid.height} x {grid.width}, and no georeference to "
            "bring them onto one grid",
            where=where,
            fix="resample one to the other's grid, or store both as GeoTIFF with their coordinate system",
        )
    pixels = _Regridded(raster, grid)
    try:
        rows, columns = pixels.source_window(0, 0, grid.height, grid.width)
    except RasterioError as error:
        raise DataError(
            "another coordinate system that cannot be transformed", where=where, fix="resample it with gdalwarp"
        ) from error
    if not (_overlaps(rows, raster.height) and _overlaps(columns, raster.width)):
        raise DataError("the rasters do not overlap", where=where, fix="give rasters of one place")
    size = {"height": grid.height, "width": grid.width}
    return replace(raster, **size, crs=grid.crs or raster.crs, transform=grid.transform, pixels=pixels)


def on_grid(raster: Raster, grid: Raster) -> bool:
    """Whether a raster has the pixels of another, to a hundredth; what a file does not say is taken to agree."""
    if (raster.height, raster.width) != (grid.height, grid.width):
        return False
    if None not in (raster.crs, grid.crs) and raster.crs != grid.crs:
        return False
    if None in (raster.transform, grid.transform):
        return True
    corners = np.array([[0, grid.width, 0, grid.width], [0, 0, grid.height, grid.height]])
    return bool(np.abs(_times(~raster.transform, *_times(grid.transform, *corners)) - corners).max() < 0.01)


@dataclass(frozen=True)
class _Regridded:
    """The pixels of ``raster`` on the grid of ``grid``."""

    raster: Raster
    grid: Raster

    def read(self, row: int, column: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        values = np.zeros((self.raster.bands, height, width), dtype=np.float32)
        valid = np.zeros((height, width), dtype=bool)
        for top, here_rows, there_rows in _aligned(row, height, self._side):
            for left, here_columns, there_columns in _aligned(column, width, self._side):
                found, has = self._block(top, left)
                values[:, here_rows, here_columns] = found[:, there_rows, there_columns]
                valid[here_rows, here_columns] = has[there_rows, there_columns]
        return values, valid

    def read_available(self, row: int, column: int, height: int, width: int) -> None:
        """One sensor, which does not say more than its valid pixels."""

    def close(self) -> None:
        """Close the file."""
        self.raster.pixels.close()

    def source_window(self, row: int, column: int, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """First and last+1 row, and column, of the raster's pixels under a window of the grid; beyond it, too."""
        steps = np.linspace(0, 1, LATTICE)
        down, across = np.meshgrid(row + height * steps, column + width * steps)
        places = self._places(across.ravel(), down.ravel())
        places = places[:, np.isfinite(places).all(0)]
        if not places.size:
            return (0, 0), (0, 0)
        low, high = np.floor(places.min(1)).astype(int), np.ceil(places.max(1)).astype(int)
        return (int(low[1]), int(high[1])), (int(low[0]), int(high[0]))

    def _block(self, row: int, column: int) -> tuple[np.ndarray, np.ndarray]:
        """Values (bands, side, side) and where they are data, of one block of the grid."""
        side = self._side
        values = np.full((self.raster.bands, side, side), np.nan, dtype=np.float32)
        valid = np.zeros((side, side), dtype=bool)
        margin = 2 + math.ceil(self._ratio)  # what bilinear weights and rounding may reach
        (top, bottom), (left, right) = (
            (low - margin, high + margin) for low, high in self.source_window(row, column, side, side)
        )
        rows, columns = _inside(top, bottom, self.raster.height), _inside(left, right, self.raster.width)
        if rows.start >= rows.stop or columns.start >= columns.stop:
            return values, valid
        read, has = self.raster.read(rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start)
        source = np.full((self.raster.bands, bottom - top, right - left), np.nan, dtype=np.float32)
        known = np.zeros((bottom - top, right - left), dtype=np.float32)  # beyond the raster nothing is
        here = (slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left))
        source[:, *here] = np.where(has, read, np.nan)
        known[here] = has
        places = {
            "src_transform": transform_of(Window(left, top, 1, 1), self.raster.transform),
            "src_crs": self.raster.crs or self.grid.crs,
            "dst_transform": transform_of(Window(column, row, 1, 1), self.grid.transform),
            "dst_crs": self.grid.crs or self.raster.crs,
        }
        share = np.zeros((side, side), dtype=np.float32)
        how, of_valid = (Resampling.average,) * 2 if self._ratio > 1 else (Resampling.bilinear, Resampling.nearest)
        try:
            reproject(source, values, **places, src_nodata=np.nan, dst_nodata=np.nan, resampling=how)
            reproject(known, share, **places, resampling=of_valid)
        except RasterioError as error:
            raise DataError("the raster cannot be resampled", where=self.raster.path, fix="use gdalwarp") from error
        return values, (share >= 0.5 - 1e-6) & np.isfinite(values).all(0)

    def _places(self, columns: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """(n,) columns and rows of the grid -> (2, n) columns and rows of the raster."""
        x, y = _times(self.grid.transform, columns, rows)
        if None not in (self.raster.crs, self.grid.crs) and self.raster.crs != self.grid.crs:
            x, y = map(np.asarray, transform(self.grid.crs, self.raster.crs, x, y))
        return _times(~self.raster.transform, x, y)

    @cached_property
    def _ratio(self) -> float:
        """How many of the raster's pixels lie along one of the grid's, in the middle; 1 if about one."""
        middle = np.array([self.grid.width, self.grid.height]) / 2
        x, y = self._places(*(middle[:, None] + np.array([[0, 1, 0], [0, 0, 1]])))
        ratio = math.sqrt(abs((x[1] - x[0]) * (y[2] - y[0]) - (x[2] - x[0]) * (y[1] - y[0])))
        return ratio if math.isfinite(ratio) and abs(ratio - 1) > 1e-3 else 1.0

    @cached_property
    def _side(self) -> int:
        return max(8, min(BLOCK, int(MOST_READ / self._ratio)))


def _aligned(start: int, length: int, side: int) -> Iterator[tuple[int, slice, slice]]:
    """Blocks that touch a range: their first pixel, their part of the range, and the range's part of them."""
    for first in range(start // side * side, start + length, side):
        low, high = max(first, start), min(first + side, start + length)
        yield first, slice(low - start, high - start), slice(low - first, high - first)


def _times(affine: Affine, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(2, n): points under an affine map."""
    return np.stack([affine.a * x + affine.b * y + affine.c, affine.d * x + affine.e * y + affine.f])


def _inside(low: int, high: int, size: int) -> slice:
    return slice(max(low, 0), min(high, size))


def _overlaps(window: tuple[int, int], size: int) -> bool:
    return max(window[0], 0) < min(window[1], size)
