"""Simulated satellites from real spectra: what a multispectral sensor would have made of a hyperspectral scene.

The land cover is real, the shift between sensors is known: other bands, other calibration, more or less air and noise.
The pixel grid stays that of the scene. For the same ground under several sensors see ``cross_sensor``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from terramoe.data.scenes import Scene
from terramoe.data.worlds.fields import stream
from terramoe.data.worlds.radiometry import region_radiometry
from terramoe.data.worlds.responses import covered, integrate
from terramoe.data.worlds.sensors import Band
from terramoe.errors import ConfigError, DataError

COMMON = ("blue", "green", "red", "nir")  # the bands that all satellites here have
BRIGHTEST = 2.0  # more than this is no reflectance but some digital number
SHOT = 0.5  # share of the noise variance, at the reference reflectance, that grows with the light


@dataclass(frozen=True)
class Satellite:
    """A multispectral sensor.

    Attributes:
        name: of it. bands: in the order of wavelength.
        snr: signal to noise of each band at its reference reflectance.
        reference: that reflectance, with the sun overhead.
    """

    name: str
    bands: tuple[Band, ...]
    snr: tuple[float, ...]
    reference: tuple[float, ...]


def _satellite(name: str, rows: Sequence[tuple[str, float, float, float, float]]) -> Satellite:
    return Satellite(
        name,
        tuple(Band(band, centre, width) for band, centre, width, _, _ in rows),
        tuple(row[3] for row in rows),
        tuple(row[4] for row in rows),
    )


# name, centre and width in nm, signal to noise, reference reflectance (reference radiance over the sun's irradiance).
# Sentinel-2A: centres and widths of the spectral response document, signal to noise of the user handbook.
_SENTINEL2 = (
    ("coastal", 442.7, 21, 129, 0.22),
    ("blue", 492.4, 66, 154, 0.21),
    ("green", 559.8, 36, 168, 0.22),
    ("red", 664.6, 31, 142, 0.22),
    ("red edge 1", 704.1, 15, 117, 0.16),
    ("red edge 2", 740.5, 15, 89, 0.17),
    ("red edge 3", 782.8, 20, 105, 0.18),
    ("nir", 832.8, 106, 172, 0.31),
    ("narrow nir", 864.7, 21, 72, 0.17),
    ("water vapour", 945.1, 20, 114, 0.03),
    ("cirrus", 1373.5, 31, 50, 0.05),
    ("swir 1", 1613.7, 91, 100, 0.05),
    ("swir 2", 2202.4, 175, 100, 0.06),
)
# Landsat 8 OLI: centres and widths of the data users handbook, its required signal to noise at typical radiance.
_LANDSAT8 = (
    ("coastal", 443.0, 16, 130, 0.07),
    ("blue", 482.0, 60, 130, 0.06),
    ("green", 561.4, 57, 100, 0.05),
    ("red", 654.6, 37, 90, 0.04),
    ("nir", 864.7, 28, 90, 0.05),
    ("swir 1", 1608.9, 85, 100, 0.05),
    ("swir 2", 2200.7, 187, 100, 0.06),
)
# Gaofen-1 and -2, multispectral cameras: both are published as 450-520, 520-590, 630-690 and 770-890 nm. PlanetScope,
# first generation: 455-515, 500-590, 590-670 and 780-860 nm. The signal to noise of these three is our assumption. So
# the two Gaofen differ in noise, gains and air only.
_GAOFEN = (("blue", 485.0, 70), ("green", 555.0, 70), ("red", 660.0, 60), ("nir", 830.0, 120))
_PLANET = (("blue", 485.0, 60), ("green", 545.0, 90), ("red", 630.0, 80), ("nir", 820.0, 80))

SATELLITES: Mapping[str, Satellite] = {
    satellite.name: satellite
    for satellite in (
        _satellite("sentinel-2", [r for r in _SENTINEL2 if r[0] not in ("coastal", "water vapour", "cirrus")]),
        _satellite("sentinel-2 all", _SENTINEL2),
        _satellite("landsat-8", _LANDSAT8),
        _satellite("gf-1", [(*row, 60.0, 0.2) for row in _GAOFEN]),
        _satellite("gf-2", [(*row, 45.0, 0.2) for row in _GAOFEN]),
        _satellite("planetscope", [(*row, 40.0, 0.2) for row in _PLANET]),
    )
}


def acquire_satellite(
    scene: Scene,
    satellite: str | Satellite,
    seed: int = 0,
    *,
    haze: float = 0.05,
    gain: float = 0.05,
    offset: float = 0.005,
    noise: float = 1.0,
    bands: Sequence[str] | None = None,
) -> Scene:
    """The scene as a satellite would have seen it: float32 (bands, H, W), labels and split as they were.

    Bands see the spectrum through Gaussian responses, then y = gain * x + path light + offset, then noise of which
    one part is constant and one grows with the light (SHOT). Bands without a wavelength, such as LiDAR, are lost.

    Args:
        scene: with ``wavelengths``; its values are taken as reflectance.
        satellite: a name of ``SATELLITES``, or one of your own.
        seed: of gains, offsets and noise; each satellite has draws of its own.
        haze: path light at 450 nm, as reflectance; falls with the fourth power of wavelength.
        gain, offset: standard deviations, over the bands, of gains around 1 and of offsets around the path light.
        noise: 1 as of the sensor, 0 none.
        bands: names, in the order wanted; all that the spectra cover if None.

    Raises:
        ConfigError: unknown satellite or band, a band that is not covered, negative settings.
        DataError: no wavelengths, no reflectance, or no band covered.
    """
    satellite = satellite_of(satellite)
    for name, value in (("haze", haze), ("gain", gain), ("offset", offset), ("noise", noise)):
        if not value >= 0:
            raise ConfigError(f"{name} is {value}", where="acquire_satellite", fix="use 0 or more")
    spectra, nanometres = _spectra_of(scene)
    chosen = _choose(satellite, nanometres, bands, scene.name)
    picked = [satellite.bands[i] for i in chosen]
    truth = integrate(spectra, nanometres, picked)
    centres = np.array([band.centre for band in picked])
    radiometry = stream(seed, "satellite", satellite.name)
    gains, offsets = (
        v[0][:, None, None] for v in region_radiometry(np.array([haze]), centres, gain, offset, radiometry)
    )
    light = gains * truth + offsets
    reference, snr = (np.array(v)[chosen, None, None] for v in (satellite.reference, satellite.snr))
    spread = reference / snr * np.sqrt(1 - SHOT + SHOT * np.maximum(light, 0) / reference)
    image = light + noise * spread * stream(seed, "satellite noise", satellite.name).standard_normal(light.shape)
    return Scene(
        name=f"{scene.name} as {satellite.name}",
        image=np.where(scene.valid, image, 0).astype(np.float32),
        valid=scene.valid,
        labels=scene.labels,
        class_values=scene.class_values,
        class_names=scene.class_names,
        crs=scene.crs,
        transform=scene.transform,
        band_names=tuple(band.name for band in picked),
        sensors=((satellite.name, len(picked)),),
        wavelengths=tuple(centres.tolist()),
        domains=scene.domains,
        domain_names=scene.domain_names,
        official=scene.official,
    )


def satellite_of(satellite: str | Satellite) -> Satellite:
    if isinstance(satellite, Satellite):
        return satellite
    if satellite not in SATELLITES:
        raise ConfigError(f"no satellite '{satellite}'", where="satellites", fix=f"use one of {', '.join(SATELLITES)}")
    return SATELLITES[satellite]


def _spectra_of(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """(channels, H, W) and (channels,) nanometres of the bands that have a wavelength."""
    nanometres = np.asarray(scene.wavelengths, dtype=float)
    optical = nanometres > 0
    if not optical.any():
        raise DataError("the bands have no wavelengths", where=scene.name, fix="replace(scene, wavelengths=...)")
    spectra = scene.image[optical]
    if spectra.max() > BRIGHTEST:
        raise DataError(
            f"values up to {spectra.max():g} are no reflectance", where=scene.name, fix="scale the image to 0..1"
        )
    return spectra.astype(float), nanometres[optical]


def _choose(satellite: Satellite, nanometres: np.ndarray, bands: Sequence[str] | None, where: str) -> list[int]:
    names = [band.name for band in satellite.bands]
    if bands is None:
        chosen = np.flatnonzero(covered(nanometres, satellite.bands)).tolist()
        if not chosen:
            raise DataError(f"no band of {satellite.name} is covered", where=where, fix="give a scene of its range")
        return chosen
    if not bands or not set(bands) <= set(names):
        raise ConfigError(f"no such bands: {list(bands)}", where=satellite.name, fix=f"use {', '.join(names)}")
    return [names.index(band) for band in bands]
