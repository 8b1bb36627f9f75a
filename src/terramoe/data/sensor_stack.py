"""Several rasters of one place, one per sensor, as one raster whose bands are those of all sensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from terramoe.data.rasters import STREAM_GIB, Raster, open_raster
from terramoe.data.regrid import on_grid, onto_grid
from terramoe.errors import DataError

Sensors = tuple[tuple[str, int], ...]  # name and number of bands, in the order of the bands


def sensor_files(text: str) -> dict[str, str] | None:
    """The files of "NAME=FILE,NAME=FILE", or None if the text is the name of a single file.

    Raises:
        DataError: a name twice, or only some of the files are named.
    """
    parts = text.split(",")
    if Path(text).exists() or not any("=" in part for part in parts):
        return None
    pairs = [part.partition("=") for part in parts]
    names = [name.strip() for name, _, file in pairs if file]
    if len(names) < len(parts) or len(set(names)) < len(names) or not all(names):
        raise DataError(
            "every file needs a sensor's name of its own", where=text, fix="write hsi=IMAGE.tif,lidar=HEIGHT.tif"
        )
    return dict(zip(names, [file for _, _, file in pairs], strict=True))


def open_files(text: str, *, sensors: Sensors = (), variable: str | None = None, max_gib: float = STREAM_GIB) -> Raster:
    """Open a file, or the files of "NAME=FILE,NAME=FILE" in the order of a model's sensors.

    Args:
        sensors, max_gib: see ``open_stack``. variable: see ``open_raster``.
    """
    files = sensor_files(text)
    if files is None:
        return open_raster(text, variable=variable, max_gib=max_gib)
    return open_stack(files, sensors=sensors, max_gib=max_gib)[0]


def open_stack(
    files: Mapping[str, str], *, sensors: Sensors | None = None, max_gib: float = STREAM_GIB
) -> tuple[Raster, Sensors]:
    """Open one raster per sensor. A pixel is valid where any sensor has it.

    The grid is that of the first of the sensors, in their order, that has a file. A raster on another grid is
    resampled onto it as it is read: finer pixels are averaged, coarser or shifted ones interpolated bilinearly, nodata
    left out; where it does not reach, its sensor is missing. See ``regrid.onto_grid``.

    Args:
        files: by the sensor's name.
        sensors: the order and number of bands that are wanted, such as a model's; one without a file is missing
            everywhere. None takes the files as they are.
        max_gib: budget of each file, and of all together on the grid.

    Returns:
        The raster, and name and number of bands of each sensor.

    Raises:
        DataError: a sensor that is not wanted, other numbers of bands, files that do not overlap, or that differ in
            size without a georeference, over the budget; see ``open_raster``.
    """
    _require_names(files, sensors)
    with ExitStack() as opened:
        parts = {name: opened.enter_context(open_raster(file, max_gib=max_gib)) for name, file in files.items()}
        wanted = sensors or tuple((name, part.bands) for name, part in parts.items())
        for name, bands in wanted:
            if name in parts and parts[name].bands != bands:
                raise DataError(
                    f"'{name}' has {parts[name].bands} bands, not {bands}", where=parts[name].path, fix="give those"
                )
        first = next(parts[name] for name, _ in wanted if name in parts)
        parts = {name: part if on_grid(part, first) else onto_grid(part, first) for name, part in parts.items()}
        path = Path("+".join(part.path.name for part in parts.values()))
        _require_budget(sum(bands for _, bands in wanted), first, path, max_gib)
        opened.pop_all()  # from here on the stack closes them
    pixels = _Stack([parts.get(name) for name, _ in wanted], [bands for _, bands in wanted])
    names = [parts[name].band_names if name in parts else ("",) * bands for name, bands in wanted]
    raster = Raster(
        path=path,
        bands=sum(pixels.bands),
        height=first.height,
        width=first.width,
        pixels=pixels,
        crs=next((part.crs for part in parts.values() if part.crs is not None), None),
        transform=next((part.transform for part in parts.values() if part.transform is not None), None),
        band_names=tuple(name for group in names for name in group),
    )
    return raster, wanted


@dataclass(frozen=True)
class _Stack:
    """The pixels of all sensors; None stands for a sensor without a file."""

    parts: Sequence[Raster | None]
    bands: Sequence[int]

    def read(self, row: int, column: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        found = [
            (np.zeros((bands, height, width), np.float32), np.zeros((height, width), bool))
            if part is None
            else part.read(row, column, height, width)
            for part, bands in zip(self.parts, self.bands, strict=True)
        ]
        return np.concatenate([values for values, _ in found]), np.any([valid for _, valid in found], axis=0)

    def read_available(self, row: int, column: int, height: int, width: int) -> np.ndarray:
        nothing = np.zeros((height, width), bool)
        return np.stack([nothing if p is None else p.read(row, column, height, width)[1] for p in self.parts])

    def close(self) -> None:
        """Close all files."""
        for part in self.parts:
            if part is not None:
                part.pixels.close()


def _require_names(files: Mapping[str, str], sensors: Sensors | None) -> None:
    known = [name for name, _ in sensors or ()]
    if sensors == () and files:
        raise DataError(
            "the model does not tell sensors apart", where=", ".join(files), fix="give one raster with all its bands"
        )
    strange = [] if sensors is None else sorted(set(files) - set(known))
    if strange or not files:
        raise DataError(
            f"no sensor is called {', '.join(strange) or 'nothing'}", where="sensors", fix=f"use {', '.join(known)}"
        )


def _require_budget(bands: int, grid: Raster, path: Path, max_gib: float) -> None:
    gib = 4 * bands * grid.height * grid.width / 2**30
    if gib > max_gib:
        raise DataError(
            f"{bands} x {grid.height} x {grid.width} values of all sensors take {gib:.1f} GiB, the budget is "
            f"{max_gib:g}",
            where=path,
            fix="crop the rasters, name the coarsest first, or raise --max-gib",
        )
