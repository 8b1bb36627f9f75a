"""A simulated world on disk: one GeoTIFF a sensor and date, the truth beside them, and a manifest of it all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from terramoe._version import __version__
from terramoe.data.worlds.world import MEANINGS, Acquisition, World
from terramoe.errors import ConfigError
from terramoe.storage.atomic import sha256_of, write_json
from terramoe.storage.geotiff import RasterForm, write_cog

if TYPE_CHECKING:
    from affine import Affine

FORMAT = 1
MANIFEST = "world.json"
NODATA = -9999.0  # of measurements
NO_ID = 255  # of maps of integers; in labels 0 is what has none
UNITS = {"optical": "reflectance", "radar": "backscattered power", "lidar": "metres"}


def write_world(world: World, folder: str | Path, *, overwrite: bool = False) -> Path:
    """Write a world; returns its manifest ``world.json``, which is written last and lists every file with its SHA-256.

    ``<sensor>_week<n>.tif`` the sensor's own grid and values, nodata -9999 · ``valid_<sensor>.tif`` a band a date ·
    ``labels.tif`` after all changes, ``labels_before.tif`` · ``change.tif`` index of the first date with the new class,
    0 none · ``regime_<name>.tif`` a band a date where it depends on one; ``regime_sky.tif`` is the cloud mask ·
    ``terrain.tif`` ground and objects in metres · ``scene.tif`` all sensors on the 10 m grid, as ``World.scene``.

    Raises:
        ConfigError: the folder holds a world, and ``overwrite`` is not set. DataError: it cannot be written.
    """
    folder = Path(folder)
    if folder.is_file():
        raise ConfigError("the output is a file", where=folder, fix="name another folder with -o")
    if (folder / MANIFEST).exists():
        if not overwrite:
            raise ConfigError("this folder holds a world", where=folder, fix="name another with -o, or add --overwrite")
        (folder / MANIFEST).unlink()
    weeks = tuple(f"week {week}" for week in world.recipe.weeks)
    files = _Files(folder, world)
    for name, acquisition in world.sensors.items():
        sensor = acquisition.sensor
        names = tuple(band.name for band in sensor.bands)
        for file, values, valid in zip(
            _files_of(world, acquisition), acquisition.values, acquisition.valid, strict=True
        ):
            files.measured(file, np.where(valid, values, NODATA), names, acquisition.transform)
        flown = tuple(weeks[date] for date in acquisition.dates)
        files.ids(f"valid_{name}.tif", acquisition.valid, flown, acquisition.transform)
    files.ids("labels.tif", world.labels[None], ("class",), nodata=0)
    files.ids("labels_before.tif", world.labels_before[None], ("class",), nodata=0)
    files.ids("change.tif", world.change[None], ("date of change",))
    for name, values in world.regimes.items():
        dated = values.ndim == 3
        files.ids(_regime_file(name), values if dated else values[None], weeks if dated else (name,))
    files.measured("terrain.tif", np.stack([world.terrain, world.objects]), ("ground", "objects"))
    image, valid, names = world.stack()
    files.measured("scene.tif", np.where(valid, image, NODATA), names)
    write_json(folder / MANIFEST, _manifest(world, files.written))
    return folder / MANIFEST


class _Files:
    """Writes rasters into a folder and keeps their hashes."""

    def __init__(self, folder: Path, world: World) -> None:
        self.folder, self.world = folder, world
        self.written: dict[str, str] = {}

    def measured(self, name: str, pixels: np.ndarray, bands: tuple[str, ...], transform: Affine | None = None) -> None:
        """(bands, h, w) as float32."""
        self._write(name, pixels.astype(np.float32), bands, transform, NODATA, ids=False)

    def ids(
        self,
        name: str,
        pixels: np.ndarray,
        bands: tuple[str, ...],
        transform: Affine | None = None,
        nodata: int = NO_ID,
    ) -> None:
        """(bands, h, w) as 8-bit integers."""
        self._write(name, pixels.astype(np.uint8), bands, transform, nodata, ids=True)

    def _write(
        self, name: str, pixels: np.ndarray, bands: tuple[str, ...], transform: Affine | None, nodata: float, ids: bool
    ) -> None:
        form = RasterForm(
            height=pixels.shape[1],
            width=pixels.shape[2],
            band_names=bands,
            dtype=pixels.dtype.name,
            nodata=nodata,
            crs=self.world.crs,
            transform=self.world.transform if transform is None else transform,
            ids=ids,
        )
        write_cog(self.folder / name, pixels, form)
        self.written[name] = sha256_of(self.folder / name)


def _files_of(world: World, acquisition: Acquisition) -> list[str]:
    return [f"{acquisition.sensor.name}_week{world.recipe.weeks[date]}.tif" for date in acquisition.dates]


def _regime_file(name: str) -> str:
    return f"regime_{name}.tif"


def _manifest(world: World, written: Mapping[str, str]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "terramoe": __version__,
        "world": world.name,
        "size": world.size,
        "seed": world.seed,
        "recipe": {**asdict(world.recipe), "sensors": list(world.sensors)},
        "crs": world.crs.to_string(),
        "transform": list(world.transform)[:6],
        "classes": {str(number): name for number, name in enumerate(world.class_names, start=1)},
        "platforms": list(world.platforms),
        "sensors": {name: _sensor(world, acquisition) for name, acquisition in world.sensors.items()},
        "regimes": {
            name: {"file": _regime_file(name), "values": list(MEANINGS.get(name, ()))} for name in world.regimes
        },
        "files": dict(written),
    }


def _sensor(world: World, acquisition: Acquisition) -> dict[str, Any]:
    sensor = acquisition.sensor
    return {
        "platform": sensor.platform,
        "kind": sensor.kind,
        "unit": UNITS[sensor.kind],
        "nodata": NODATA,
        "spacing_m": sensor.spacing,
        "bands": [{"name": b.name, "centre_nm": b.centre or None, "width_nm": b.width or None} for b in sensor.bands],
        "weeks": [world.recipe.weeks[date] for date in acquisition.dates],
        "files": _files_of(world, acquisition),
        "shifts_m": acquisition.shifts.tolist(),  # (south, east) of each date
        "gain": acquisition.gain.tolist(),  # a row a region
        "offset": acquisition.offset.tolist(),
    }
