"""A world: what its sensors saw, and the truth behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from terramoe.data.scenes import Scene
from terramoe.data.worlds.clouds import CLEAR
from terramoe.data.worlds.recipes import Recipe
from terramoe.data.worlds.sensors import Sensor
from terramoe.data.worlds.speckle import decibel
from terramoe.errors import ConfigError

if TYPE_CHECKING:
    from affine import Affine
    from rasterio.crs import CRS


# What the values of a regime mean, in order; "region" counts the recipe's latitudes, "available" is a set of bits.
MEANINGS = {
    "season": ("dormant", "green-up", "peak", "senescence"),
    "light": ("shaded", "level", "sunlit"),
    "sky": ("clear", "shadow", "cloud"),
}


@dataclass(frozen=True)
class Acquisition:
    """All that one sensor delivered, on its own grid.

    Attributes:
        sensor: which. dates: the dates' places in ``Recipe.weeks``, D of them.
        values: (D, bands, h, w) float32: reflectance, backscattered power (not decibels), or metres; 0 where invalid.
        valid: (D, h, w) bool, False where nothing was delivered or no light came back. Clouds are valid data.
        transform: of this grid.
        shifts: (D, 2) mis-registration in metres, (south, east).
        gain, offset: (regions, bands) radiometry; ones and zeros but for optical sensors.
    """

    sensor: Sensor
    dates: tuple[int, ...]
    values: np.ndarray
    valid: np.ndarray
    transform: Affine
    shifts: np.ndarray
    gain: np.ndarray
    offset: np.ndarray


@dataclass(frozen=True)
class World:
    """A simulated place. H = W = ``size`` pixels of 10 m; rasters of the truth are on that grid.

    Attributes:
        name, recipe, size, seed: what it was made of; the same four give the same world.
        sensors: acquisitions by the sensor's name.
        class_names: of labels 1..K.
        labels: (H, W) int64, 1..K, after all changes. labels_before: the same at the first date.
        change: (H, W) int64: the index of the first date with the new class, 0 where nothing changed.
        regimes: what an ideal router would find, as integers: (H, W) "region"; (dates, H, W) "season", "light"
            (slopes), "sky" (clear, shadow, cloud) and "available" (bit p set: ``platforms[p]`` can be used).
        platforms: see "available".
        terrain: (H, W) metres. objects: (H, W) metres above it, at the first date.
        crs, transform: of the 10 m grid.
    """

    name: str
    recipe: Recipe
    size: int
    seed: int
    sensors: Mapping[str, Acquisition]
    class_names: tuple[str, ...]
    labels: np.ndarray
    labels_before: np.ndarray
    change: np.ndarray
    regimes: Mapping[str, np.ndarray]
    platforms: tuple[str, ...]
    terrain: np.ndarray
    objects: np.ndarray
    crs: CRS
    transform: Affine

    def labels_at(self, date: int) -> np.ndarray:
        """(H, W) labels at a date, by its index."""
        return np.where((self.change > 0) & (self.change <= date), self.labels, self.labels_before)

    def regime(self, name: str, date: int = 0) -> np.ndarray:
        """(H, W) regime, at a date where it depends on one; ConfigError if there is none of this name."""
        if name not in self.regimes:
            raise ConfigError(f"no regime '{name}'", where=self.name, fix=f"use one of {', '.join(self.regimes)}")
        values = self.regimes[name]
        return values if values.ndim == 2 else values[date]

    def stack(
        self,
        sensors: Sequence[str] | None = None,
        dates: Sequence[int] | None = None,
        *,
        hide_clouds: bool = False,
    ) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
        """Chosen sensors and dates on the 10 m grid: float32 (bands, H, W), valid (H, W) bool, and the bands' names.

        Coarser sensors are repeated, not interpolated. Radar comes in decibels. A pixel is valid if any sensor has it;
        what else is missing there is 0, and where a platform has gaps at a date, a band of 0 and 1 says so.

        Args:
            sensors: names; all if None. dates: indices; all if None. A sensor that flew once is always taken.
            hide_clouds: optical pixels under cloud or in its shadow count as missing.

        Raises:
            ConfigError: an unknown sensor or date, or nothing chosen.
        """
        names, chosen = self._choose(sensors, dates)
        bands: dict[str, np.ndarray] = {}
        delivered: dict[str, np.ndarray] = {}
        for acquisition in (self.sensors[name] for name in names):
            sensor = acquisition.sensor
            for place, date in enumerate(acquisition.dates):
                if date not in chosen and not sensor.once:
                    continue
                week = f"week {self.recipe.weeks[date]}"
                values, seen = self._on_common_grid(acquisition, place, date, hide_clouds)
                bands |= {f"{band.name} {week}": v for band, v in zip(sensor.bands, values, strict=True)}
                key = f"{sensor.platform} {week}"
                delivered[key] = delivered.get(key, True) & seen
        bands |= {f"{key} delivered": seen for key, seen in delivered.items() if not seen.all()}
        valid = np.any(list(delivered.values()), axis=0)
        return np.where(valid, np.stack(list(bands.values())), 0).astype(np.float32), valid, tuple(bands)

    def scene(
        self,
        sensors: Sequence[str] | None = None,
        dates: Sequence[int] | None = None,
        *,
        hide_clouds: bool = False,
    ) -> Scene:
        """What ``stack`` gives, with the labels of the last date chosen: a scene like any other."""
        image, valid, names = self.stack(sensors, dates, hide_clouds=hide_clouds)
        labels = np.where(valid, self.labels_at(max(self._choose(sensors, dates)[1])), 0)
        present = np.unique(labels[labels > 0])
        return Scene(
            name=f"{self.name}, seed {self.seed}",
            image=image,
            valid=valid,
            labels=np.where(labels > 0, np.searchsorted(present, labels) + 1, 0),
            class_values=tuple(present.tolist()),
            class_names=tuple(self.class_names[value - 1] for value in present),
            crs=self.crs,
            transform=self.transform,
            band_names=names,
        )

    def _choose(self, sensors: Sequence[str] | None, dates: Sequence[int] | None) -> tuple[list[str], list[int]]:
        every = range(len(self.recipe.weeks))
        names = list(self.sensors) if sensors is None else list(sensors)
        chosen = list(every) if dates is None else list(dates)
        if not names or not set(names) <= set(self.sensors):
            raise ConfigError(f"no such sensors: {names}", where=self.name, fix=f"use {', '.join(self.sensors)}")
        if not chosen or not set(chosen) <= set(every):
            raise ConfigError(f"no such dates: {chosen}", where=self.name, fix=f"use 0..{every[-1]}")
        return names, chosen

    def _on_common_grid(
        self, acquisition: Acquisition, place: int, date: int, hide_clouds: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """(bands, H, W) and (H, W) bool of one date."""
        sensor = acquisition.sensor
        values = acquisition.values[place]
        if sensor.kind == "radar":
            values = decibel(values)
        values, seen = (
            a.repeat(sensor.factor, -2).repeat(sensor.factor, -1)[..., : self.size, : self.size]
            for a in (values, acquisition.valid[place])
        )
        if hide_clouds and sensor.kind == "optical":
            seen = seen & (self.regimes["sky"][date] == CLEAR)
        return np.where(seen, values, 0), seen
