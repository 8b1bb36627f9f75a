"""What one sensor delivers of the ground: its own law of measurement, then its sampling, then its noise."""

from __future__ import annotations

import numpy as np
from affine import Affine

from terramoe.data.worlds.clouds import veil
from terramoe.data.worlds.fields import stream
from terramoe.data.worlds.ground import Ground, Sky, lost_chips
from terramoe.data.worlds.lidar import ranged, surfaces
from terramoe.data.worlds.phenology import greenness
from terramoe.data.worlds.radiometry import region_radiometry
from terramoe.data.worlds.sensors import PIXEL, Sensor, displace, observe
from terramoe.data.worlds.speckle import power, speckle
from terramoe.data.worlds.spectra import SpectralTable, band_reflectance
from terramoe.data.worlds.world import Acquisition


def acquire(
    ground: Ground, sensor: Sensor, skies: list[Sky], size: int, transform: Affine, spectra: SpectralTable
) -> Acquisition:
    """All dates of one sensor.

    Args:
        skies: one a date. size: pixels of 10 m that the world shows. transform: of the 10 m grid.
    """
    recipe, seed = ground.recipe, ground.seed
    dates = (0,) if sensor.once else tuple(range(len(skies)))
    regions, bands, shown = len(recipe.latitudes), len(sensor.bands), -(-size // sensor.factor)
    gain, offset = np.ones((regions, bands)), np.zeros((regions, bands))
    if sensor.kind == "optical":
        gain, offset = region_radiometry(
            np.array(recipe.haze or (0.0,) * regions),
            np.array([band.centre for band in sensor.bands]),
            recipe.gain_spread,
            recipe.offset_spread,
            stream(seed, "radiometry", sensor.name),
        )
    shifts = np.array([recipe.shift * stream(seed, "shift", sensor.platform, d).standard_normal(2) for d in dates])
    values, valid = [], []
    for date, shift in zip(dates, shifts, strict=True):
        noise = stream(seed, "noise", sensor.name, date)
        seen = ~lost_chips(ground, sensor.platform, date)
        if sensor.kind == "optical":
            truth = _light_up(ground, sensor, skies[date], date, spectra, gain, offset)
        elif sensor.kind == "radar":
            truth = _backscatter(ground, skies[date], date)
        else:
            truth = surfaces(ground.terrain, ground.objects_at(date))
            seen &= ~_water(ground, date, shift)
        image = observe(truth, sensor, blur=recipe.blur, offset=shift)
        if sensor.kind == "optical":
            image = image + recipe.noise * noise.standard_normal(image.shape)
        elif sensor.kind == "radar":  # splines may undershoot, powers may not
            image = np.maximum(image, 0) * speckle(image.shape, recipe.looks, noise)
        else:
            image = ranged(image, noise)
        seen = seen.reshape(len(image[0]), sensor.factor, -1, sensor.factor).all(axis=(1, 3))
        values.append(np.where(seen, image, 0)[:, :shown, :shown].astype(np.float32))
        valid.append(seen[:shown, :shown])
    return Acquisition(
        sensor=sensor,
        dates=dates,
        values=np.stack(values),
        valid=np.stack(valid),
        transform=Affine(sensor.spacing, 0, transform.c, 0, -sensor.spacing, transform.f),
        shifts=shifts,
        gain=gain,
        offset=offset,
    )


def _green(ground: Ground, day: float) -> np.ndarray:
    """(R, K) green share of each region's classes; 1 where nothing grows."""
    return np.array(
        [
            [1.0 if c.calendar is None else float(greenness(c.calendar, day, latitude)) for c in classes]
            for latitude, classes in zip(ground.recipe.latitudes, ground.covers(), strict=True)
        ]
    )


def _light_up(
    ground: Ground,
    sensor: Sensor,
    sky: Sky,
    date: int,
    spectra: SpectralTable,
    gain: np.ndarray,
    offset: np.ndarray,
) -> np.ndarray:
    """(bands, H, W) reflectance above the air: material x season x light, clouds, then the region's radiometry."""
    seen = band_reflectance(spectra, [b.centre for b in sensor.bands], [b.width for b in sensor.bands])
    green = _green(ground, sky.day)[..., None]
    alive, dead = (
        np.array([[seen[getattr(c, state)] for c in classes] for classes in ground.covers()])
        for state in ("green", "dormant")
    )
    material = np.moveaxis(ground.lookup(green * alive + (1 - green) * dead, date), -1, 0)
    image = veil(material * ground.brightness * ground.light(sky, 1 - sky.shadow), sky.opacity)
    return np.moveaxis(gain[ground.region], -1, 0) * image + np.moveaxis(offset[ground.region], -1, 0)


def _backscatter(ground: Ground, sky: Sky, date: int) -> np.ndarray:
    """(2, H, W) backscattered power before speckle. Radar sees through clouds and needs no sun."""
    green = _green(ground, sky.day)[..., None]
    alive, dead = np.moveaxis(power(np.array([[c.radar for c in classes] for classes in ground.covers()])), 2, 0)
    return np.moveaxis(ground.lookup(green * alive + (1 - green) * dead, date), -1, 0)


def _water(ground: Ground, date: int, shift: np.ndarray) -> np.ndarray:
    """(H, W) bool: water swallows the near infrared pulse of a LiDAR, so nothing comes back."""
    wet = np.array([[c.green == "water" for c in classes] for classes in ground.covers()])
    rows, columns = shift / PIXEL
    return displace(ground.lookup(wet, date).astype(float), rows, columns) > 0.5
