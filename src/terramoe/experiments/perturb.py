"""What happens to images between training and use: a pure function that does it to a scene, at a given severity.

Severity 0 changes nothing. The same seed gives the same directions, fields and factors at every severity, so that a
greater severity is more of the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from scipy import ndimage

from terramoe.data import Scene
from terramoe.data.worlds.fields import rough_field, stream
from terramoe.errors import ConfigError

ROUGHNESS = 3.0  # of the edges of clouds, as in the simulated worlds
Sensors = Mapping[str, tuple[int, int]]  # first and last band of each, counted from 1

# Kind -> what its severity counts, and the severities that are tried unless others are asked for.
KINDS: dict[str, tuple[str, tuple[float, ...]]] = {
    "bands": ("share of the bands missing", (0.1, 0.25, 0.5)),
    "sensor": ("share of the width that a sensor does not reach", (0.25, 0.5, 1.0)),
    "cloud": ("share of the pixels under clouds", (0.1, 0.3, 0.5)),
    "gain": ("spread of the bands' factors", (0.02, 0.05, 0.1)),
    "offset": ("spread of the bands' offsets, in standard deviations", (0.1, 0.25, 0.5)),
    "noise": ("noise, in standard deviations of the band", (0.1, 0.25, 0.5)),
    "band-shift": ("pixels between groups of bands", (0.5, 1.0, 2.0)),
    "label-shift": ("pixels between image and labels", (0.5, 1.0, 2.0)),
}
OF_ONE_SENSOR = ("bands", "sensor", "cloud", "gain", "offset", "noise")  # kinds that may name a sensor


def bands_of_sensors(sensors: Sequence[tuple[str, int]]) -> dict[str, tuple[int, int]]:
    """First and last band of each sensor, counted from 1, for sensors with their numbers of bands."""
    last = np.cumsum([bands for _, bands in sensors], dtype=int).tolist()
    return {name: (end - bands + 1, end) for (name, bands), end in zip(sensors, last, strict=True)}


def perturb(scene: Scene, kind: str, severity: float, seed: int, sensors: Sensors | None = None) -> Scene:
    """The scene as it would be after a change of its image.

    bands: some, drawn at random, are missing · sensor:NAME its bands are missing in the left part of the scene, as
    outside of a swath · cloud: blobs of pixels without data · gain: each band times its own exp(severity z), z normal
    · offset: each band plus severity z standard deviations · noise: white, independent in every band · band-shift: all
    sensors but the first, or the second half of the bands, are moved · label-shift: the whole image is moved, the
    labels stay. The first six may name a sensor, as in "gain:radar": the others then stay as they are.

    What is missing is filled with the band's mean, since a model wants all its bands. Where the scene itself tells its
    sensors apart, ``available`` says what a named sensor has lost, under a gap or a cloud, and a pixel that no sensor
    has left is invalid. Means and spreads are of the pixels that a band's sensor has. Images are moved by linear
    interpolation, which smooths a little, in a direction drawn at random; what the move leaves open has no data.

    Args:
        scene: is not changed.
        kind: of ``KINDS``; "sensor" with the name of one, as in "sensor:radar".
        severity: see ``KINDS``.
        seed: of everything that is drawn.
        sensors: the bands of each, the scene's own unless given; needed for a named one, used for "band-shift".

    Raises:
        ConfigError: no such kind or sensor, or a severity that cannot be.
    """
    name, _, sensor = kind.partition(":")
    if name not in KINDS or (sensor and name not in OF_ONE_SENSOR):
        raise ConfigError(f"there is no shift '{kind}'", where="shift", fix=f"use {', '.join(KINDS)}")
    most = {"bands": 0.999, "sensor": 1.0, "cloud": 0.999}.get(name, math.inf)
    if not 0 <= severity <= most:
        fix = "use 0 or more" + ("" if most == math.inf else f", up to {most:g}")
        raise ConfigError(f"severity {severity:g} of '{kind}'", where="shift", fix=fix)
    if severity == 0:
        return scene
    sensors = sensors or bands_of_sensors(scene.sensors)
    bands = _bands_of(sensor, sensors, scene.bands) if sensor or name == "sensor" else np.arange(scene.bands)
    generator = stream(seed, name)
    if name == "bands":
        lost = generator.permutation(bands)[: min(math.ceil(severity * len(bands)), len(bands) - 1)]
        return _changed(scene, _filled(scene, lost, np.ones_like(scene.valid)))
    if name == "sensor":
        gap = np.broadcast_to(np.arange(scene.width) < round(severity * scene.width), scene.valid.shape)
        return _without(scene, sensor, bands, gap)
    if name == "cloud":
        clouds = _clouds(_has(scene)[bands[0]] if sensor else scene.valid, severity, generator)
        return (
            _without(scene, sensor, bands, clouds) if sensor else _changed(scene, available=_available(scene) & ~clouds)
        )
    if name in ("gain", "offset", "noise"):
        return _changed(scene, _altered(scene, name, bands, severity, generator))
    return _moved(scene, _second_group(sensors, scene.bands) if name == "band-shift" else bands, severity, generator)


def _changed(scene: Scene, image: np.ndarray | None = None, available: np.ndarray | None = None) -> Scene:
    """The scene with another image, or less of its sensors: ``available`` as ``_available`` gives it."""
    valid = scene.valid if available is None else scene.valid & available.any(axis=0)
    return replace(
        scene,
        image=np.where(valid, scene.image if image is None else image, 0).astype(np.float32),
        valid=valid,
        labels=np.where(valid, scene.labels, 0),
        available=scene.available if available is None or not scene.sensors else available & valid,
    )


def _altered(scene: Scene, name: str, bands: np.ndarray, severity: float, generator: np.random.Generator) -> np.ndarray:
    """The image with other gains, offsets or noise in some bands, wherever they have data."""
    old, has = scene.image[bands], _has(scene)[bands]
    if name == "gain":
        new = old * np.exp(severity * generator.standard_normal(len(bands)))[:, None, None]
    else:
        spread = [band[there].std() if there.any() else 0 for band, there in zip(old, has, strict=True)]
        step = severity * np.array(spread, dtype=np.float32)[:, None, None]
        if name == "offset":
            new = old + step * generator.standard_normal(len(bands))[:, None, None]
        else:
            new = old + step * generator.standard_normal(old.shape, dtype=np.float32)
    image = scene.image.copy()
    image[bands] = np.where(has, new, old)
    return image


def _filled(scene: Scene, bands: np.ndarray, gone: np.ndarray) -> np.ndarray:
    """The image with some bands at their mean where ``gone`` (H, W)."""
    image, has = scene.image.copy(), _has(scene)
    for band in bands:
        if has[band].any():
            image[band, gone] = scene.image[band][has[band]].mean()
    return image


def _without(scene: Scene, sensor: str, bands: np.ndarray, gone: np.ndarray) -> Scene:
    """The scene without a sensor where ``gone`` (H, W): its bands filled, and said to be missing if the scene can."""
    names = [name for name, _ in scene.sensors]
    available = _available(scene)
    if sensor in names:
        available = available.copy()
        available[names.index(sensor)] &= ~gone
    return _changed(scene, _filled(scene, bands, gone), available)


def _available(scene: Scene) -> np.ndarray:
    """(S, H, W) bool: where each sensor has data; one sensor where none is named."""
    whole = np.broadcast_to(scene.valid, (max(len(scene.sensors), 1), *scene.valid.shape))
    return whole if scene.available is None else whole & scene.available


def _has(scene: Scene) -> np.ndarray:
    """(bands, H, W) bool: where each band has data."""
    return np.repeat(_available(scene), [bands for _, bands in scene.sensors] or [scene.bands], axis=0)


def _bands_of(sensor: str, sensors: Sensors, bands: int) -> np.ndarray:
    """(n,) numbers of a sensor's bands, from 0."""
    if sensor not in sensors:
        named = ", ".join(sensors) or "none are named"
        raise ConfigError(
            f"there is no sensor '{sensor}'", where="shift", fix=f"name its first and last band in sensors ({named})"
        )
    first, last = sensors[sensor]
    if not 1 <= first <= last <= bands:
        raise ConfigError(
            f"sensor {sensor} has bands {first} to {last} of {bands}", where="shift", fix="count bands from 1"
        )
    return np.arange(first - 1, last)


def _second_group(sensors: Sensors, bands: int) -> np.ndarray:
    """The bands that move against the others."""
    if len(sensors) > 1:
        return np.concatenate([_bands_of(name, sensors, bands) for name in list(sensors)[1:]])
    return np.arange(bands // 2, bands)


def _clouds(valid: np.ndarray, cover: float, generator: np.random.Generator) -> np.ndarray:
    """(H, W) bool: a share ``cover`` of the valid pixels, in blobs."""
    height, width = valid.shape
    field = rough_field(max(height, width), ROUGHNESS, generator)[:height, :width]
    count = round(cover * valid.sum())
    order = np.argsort(np.where(valid, -field, np.inf), axis=None, kind="stable")
    clouds = np.zeros(valid.size, dtype=bool)
    clouds[order[:count]] = True
    return clouds.reshape(valid.shape)


def _moved(scene: Scene, bands: np.ndarray, distance: float, generator: np.random.Generator) -> Scene:
    """The scene with some bands moved; a sensor of theirs keeps the pixels that have it before and after."""
    angle = generator.uniform(0, 2 * math.pi)
    step = (distance * math.sin(angle), distance * math.cos(angle))
    image = scene.image.copy()
    for band in bands:
        image[band] = ndimage.shift(scene.image[band], step, order=1, mode="nearest")
    available = _available(scene).copy()
    owner = np.repeat(np.arange(len(available)), [count for _, count in scene.sensors] or [scene.bands])
    for sensor in np.unique(owner[bands]):
        whole = ndimage.shift(available[sensor].astype(np.float64), step, order=1, mode="constant")
        available[sensor] &= whole > 1 - 1e-6
    return _changed(scene, image, available)
