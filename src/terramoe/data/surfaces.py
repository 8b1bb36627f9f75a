"""Rasters of one surface from several sensors, some coarser than others, as observations on one quad-tree grid.

The leaves are the pixels of the finest raster. A raster whose pixels are 2, 4, 8 ... times as wide is an observation of
scale 1, 2, 3 ...; its pixel borders must lie on those of the finest. Where the finest raster does not begin at a border
of the coarsest, the leaves begin above or to the left of it, without values; ``Surfaces.crop`` takes that off again.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from terramoe.data.rasters import MEMORY_GIB, Raster, open_raster
from terramoe.data.sensor_stack import sensor_files
from terramoe.errors import ConfigError, DataError
from terramoe.mixtures.quad_tree import DEEPEST, Observation, level_shape

if TYPE_CHECKING:
    from affine import Affine
    from rasterio.crs import CRS

TOLERANCE = 0.05  # of a fine pixel: how far borders may miss each other


@dataclass(frozen=True)
class Surfaces:
    """What several sensors saw of one surface.

    Attributes:
        observations, names, noise: one a sensor, in the order given; noise as standard deviation.
        grid: (H, W) of the finest raster, the user's grid.
        offset: rows and columns of leaves above and left of it.
        crs, transform: of the user's grid, None where the files have none.
    """

    observations: tuple[Observation, ...]
    names: tuple[str, ...]
    noise: tuple[float, ...]
    grid: tuple[int, int]
    offset: tuple[int, int] = (0, 0)
    crs: CRS | None = None
    transform: Affine | None = None

    def crop(self, leaves: np.ndarray) -> np.ndarray:
        """(H', W', ...) of the leaves -> (H, W, ...) on the user's grid."""
        (row, column), (height, width) = self.offset, self.grid
        return leaves[row : row + height, column : column + width]

    def lay(self, values: np.ndarray, fill: float = np.nan) -> np.ndarray:
        """(H, W) on the user's grid -> on the leaves, with ``fill`` beyond: the inverse of ``crop``."""
        return np.pad(values, [(before, 0) for before in self.offset], constant_values=fill)

    def index(self, name: str) -> int:
        """Which observation is the sensor's. ConfigError if there is none."""
        if name not in self.names:
            raise ConfigError(f"no sensor is called '{name}'", where="sensors", fix=f"use {', '.join(self.names)}")
        return self.names.index(name)

    def arranged(self, names: Sequence[str]) -> Surfaces:
        """The same sensors in another order. DataError if they are not the same."""
        if set(names) != set(self.names):
            what = f"sensors {', '.join(self.names)} for a model of {', '.join(names)}"
            raise DataError(what, where="sensors", fix="give the sensors of the fit")
        order = [self.index(name) for name in names]
        return replace(
            self,
            observations=tuple(self.observations[i] for i in order),
            names=tuple(names),
            noise=tuple(self.noise[i] for i in order),
        )

    def with_noise(self, noise: Mapping[str, float]) -> Surfaces:
        """The same values with another standard deviation of each sensor's error. ConfigError as ``open_surfaces``."""
        _check_noise(dict.fromkeys(self.names), noise)
        sd = tuple(float(noise[name]) for name in self.names)
        seen = zip(self.observations, sd, strict=True)
        return replace(self, observations=tuple(replace(one, variance=s**2) for one, s in seen), noise=sd)


@dataclass(frozen=True)
class _Band:
    """One raster in memory: (h, w) with NaN for nodata, and where it lies."""

    path: Path
    value: np.ndarray
    crs: CRS | None
    transform: Affine | None


def open_surfaces(
    files: str | Mapping[str, str | os.PathLike[str]], noise: Mapping[str, float], *, max_gib: float = MEMORY_GIB
) -> Surfaces:
    """Read one raster of one band per sensor; nodata become gaps.

    Args:
        files: "NAME=FILE,NAME=FILE", or files by name.
        noise: standard deviation of each sensor's error, in the unit of the surface.
        max_gib: budget of each raster as float32.

    Raises:
        DataError: a file that cannot be read or has several bands, or grids that do not nest.
        ConfigError: a sensor without noise, a noise that is not above 0, or one of no sensor.
    """
    named = sensor_files(files) if isinstance(files, str) else dict(files)
    if not named:
        raise DataError("the sensors have no names", where=str(files), fix="write radar=RADAR.tif,laser=LASER.tif")
    _check_noise(named, noise)
    bands = {name: _read(path, max_gib) for name, path in named.items()}
    located = [band.transform is not None for band in bands.values()]
    if any(located) and not all(located):
        bare = next(band for band in bands.values() if band.transform is None)
        raise DataError("this raster has no georeference, others have", where=bare.path, fix="give all or none of them")
    finest = min(bands.values(), key=_fineness)
    placed = {name: _place(band, finest) for name, band in bands.items()}
    step = 2 ** max(scale for scale, _ in placed.values())
    # How far the user's grid begins behind a border of the coarsest raster: so many leaves are added before it.
    coarsest = next(place for scale, place in placed.values() if 2**scale == step)
    offset = tuple(int(-first % step) for first in coarsest)
    leaves = tuple(size + before for size, before in zip(finest.value.shape, offset, strict=True))
    observations = []
    for name, (scale, place) in placed.items():
        start = tuple(before + first for before, first in zip(offset, place, strict=True))
        if any(first % 2**scale for first in start):
            raise _no_nesting(bands[name], finest, "its pixel borders lie between those of a coarser raster")
        value = _laid(bands[name], tuple(first >> scale for first in start), level_shape(leaves, scale))
        observations.append(Observation(value, float(noise[name]) ** 2, scale))
    sd = tuple(float(noise[name]) for name in named)
    return Surfaces(tuple(observations), tuple(named), sd, finest.value.shape, offset, finest.crs, finest.transform)


def read_surface(path: str | os.PathLike[str], surfaces: Surfaces, *, max_gib: float = MEMORY_GIB) -> np.ndarray:
    """(H, W) of a raster on the user's grid, such as the truth; NaN for nodata. DataError for another grid."""
    band = _read(path, max_gib)
    same = band.value.shape == surfaces.grid
    if same and None not in (band.transform, surfaces.transform):
        same = band.transform.almost_equals(surfaces.transform, precision=1e-6 * abs(surfaces.transform.a))
    if same and None not in (band.crs, surfaces.crs):
        same = band.crs == surfaces.crs
    if not same:
        raise DataError(
            f"{band.value.shape[0]} x {band.value.shape[1]} pixels on another grid than the finest sensor's",
            where=path,
            fix=f"resample to its {surfaces.grid[0]} x {surfaces.grid[1]} pixels, for example with gdalwarp",
        )
    return band.value


def _check_noise(named: Mapping[str, object], noise: Mapping[str, float]) -> None:
    for name in [*named, *noise]:
        if name not in named or name not in noise:
            what = "no noise" if name in named else "a noise but no raster"
            raise ConfigError(f"'{name}' has {what}", where="noise", fix=f"give one each for {', '.join(named)}")
        if not 0 < noise[name] < np.inf:
            fix = "give its standard deviation, above 0, in the unit of the heights"
            raise ConfigError(f"the noise of '{name}' is {noise[name]}", where="noise", fix=fix)


def _read(path: str | os.PathLike[str], max_gib: float) -> _Band:
    with open_raster(path, max_gib=max_gib) as raster:
        _require_plain(raster)
        value, valid = raster.read(0, 0, raster.height, raster.width)
        return _Band(raster.path, np.where(valid, value[0].astype(np.float64), np.nan), raster.crs, raster.transform)


def _require_plain(raster: Raster) -> None:
    turned = raster.transform is not None and (raster.transform.b != 0 or raster.transform.d != 0)
    if raster.bands != 1 or turned:
        what = "the raster is rotated" if turned else f"the raster has {raster.bands} bands"
        raise DataError(what, where=raster.path, fix="give one band of heights, north up, for example with gdalwarp")


def _fineness(band: _Band) -> float:
    """Smaller for finer pixels."""
    return -float(band.value.size) if band.transform is None else abs(band.transform.a * band.transform.e)


def _place(band: _Band, finest: _Band) -> tuple[int, tuple[int, int]]:
    """Scale of a raster, and at which row and column of the finest it begins."""
    if band.transform is None:  # of rasters without coordinates, the upper left corners are one
        scales = [s for s in range(DEEPEST + 1) if level_shape(finest.value.shape, s) == band.value.shape]
        if not scales:
            raise _no_nesting(band, finest, f"{band.value.shape} pixels beside {finest.value.shape}")
        return scales[0], (0, 0)
    if None not in (band.crs, finest.crs) and band.crs != finest.crs:
        raise _no_nesting(band, finest, "another coordinate system")
    ratio = np.array([band.transform.e / finest.transform.e, band.transform.a / finest.transform.a])
    scale = int(np.rint(np.log2(ratio[0]))) if ratio[0] > 0 else -1
    drift = np.abs(ratio / 2.0**scale - 1) * 2.0**scale * band.value.shape  # of the last border, in fine pixels
    if not 0 <= scale <= DEEPEST or drift.max() > TOLERANCE:
        raise _no_nesting(band, finest, f"its pixels are {ratio[1]:.6g} x {ratio[0]:.6g} times as large")
    first = np.array(
        [
            (band.transform.f - finest.transform.f) / finest.transform.e,
            (band.transform.c - finest.transform.c) / finest.transform.a,
        ]
    )
    if np.abs(first - np.rint(first)).max() > TOLERANCE:
        raise _no_nesting(band, finest, "its pixel borders lie between those of the finest raster")
    return scale, tuple(int(value) for value in np.rint(first))


def _laid(band: _Band, start: tuple[int, int], shape: tuple[int, int]) -> np.ndarray:
    """A raster that begins at ``start`` (maybe below 0) on a grid of ``shape``: cut, and NaN beyond it."""
    found, value = np.full(shape, np.nan), band.value
    part = found[tuple(slice(max(at, 0), max(at + size, 0)) for at, size in zip(start, value.shape, strict=True))]
    if not part.size:
        raise DataError("the raster lies elsewhere than the finest", where=band.path, fix="give rasters of one place")
    row, column = (max(-at, 0) for at in start)
    part[...] = value[row : row + part.shape[0], column : column + part.shape[1]]
    return found


def _no_nesting(band: _Band, finest: _Band, why: str) -> DataError:
    return DataError(
        f"the grids do not nest: {why}",
        where=f"{band.path.name} and {finest.path.name}",
        fix="resample to pixels 1, 2, 4, 8 ... times as wide with common borders, for example with gdalwarp -tr -tap",
    )
