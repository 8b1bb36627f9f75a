"""What happens to images between training and use: a pure function that does it to a scene, at a given severity.

Severity 0 changes nothing. The same seed gives the same directions, fields and factors at every severity, so that a
greater severity is more of the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
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


def perturb(scene: Scene, kind: str, severity: float, seed: int, sensors: Sensors | None = None) -> Scene:
    """The scene as it would be after a change of its image.

    bands: some, drawn at random, are missing · sensor:NAME its bands are missing in the left part of the scene, as
    outside of a swath · cloud: blobs of pixels without data · gain: each band times its own exp(severity z), z normal
    · offset: each band plus severity z standard deviations · noise: white, independent in every band · band-shift: all
    sensors but the first, or the second half of the bands, are moved · label-shift: the whole image is moved, the
    labels stay.

    What is missing is filled with the band's mean, since a model wants all its bands. Images are moved by linear
    interpolation, which smooths a little, in a direction drawn at random; what the move leaves open has no data.

    Args:
        scene: is not changed.
        kind: of ``KINDS``; "sensor" with the name of one, as in "sensor:radar".
        severity: see ``KINDS``.
        seed: of everything that is drawn.
        sensors: the bands of each; needed for "sensor", used for "band-shift".

    Raises:
        ConfigError: no such kind or sensor, or a severity that cannot be.
    """
    name, _, sensor = kind.partition(":")
    if name not in KINDS:
        raise ConfigError(f"there is no shift '{kind}'", where="shift", fix=f"use {', '.join(KINDS)}")
    most = {"bands": 0.999, "sensor": 1.0, "cloud": 0.999}.get(name, math.inf)
    if not 0 <= severity <= most:
        fix = "use 0 or more" + ("" if most == math.inf else f", up to {most:g}")
        raise ConfigError(f"severity {severity:g} of '{kind}'", where="shift", fix=fix)
    if severity == 0:
        return scene
    generator = stream(seed, name)
    image, valid = scene.image, scene.valid
    spread = image[:, valid].std(axis=1)[:, None, None]
    if name == "bands":
        lost = generator.permutation(scene.bands)[: min(math.ceil(severity * scene.bands), scene.bands - 1)]
        image = _without(scene, lost, scene.width)
    elif name == "sensor":
        image = _without(scene, _bands_of(sensor, sensors or {}, scene.bands), round(severity * scene.width))
    elif name == "cloud":
        valid = valid & ~_clouds(valid, severity, generator)
    elif name == "gain":
        image = image * np.exp(severity * generator.standard_normal(scene.bands))[:, None, None]
    elif name == "offset":
        image = image + severity * spread * generator.standard_normal(scene.bands)[:, None, None]
    elif name == "noise":
        image = image + severity * spread * generator.standard_normal(image.shape, dtype=np.float32)
    else:
        moving = _second_group(sensors or {}, scene.bands) if name == "band-shift" else np.arange(scene.bands)
        image, valid = _moved(scene, moving, severity, generator)
    return replace(
        scene,
        image=np.where(valid, image, 0).astype(np.float32),
        valid=valid,
        labels=np.where(valid, scene.labels, 0),
    )


def _without(scene: Scene, bands: np.ndarray, columns: int) -> np.ndarray:
    """The image with some bands at their mean in the first columns."""
    image = scene.image.copy()
    mean = image[bands][:, scene.valid].mean(axis=1)
    image[bands, :, :columns] = mean[:, None, None]
    return image


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


def _moved(
    scene: Scene, bands: np.ndarray, distance: float, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Image with some bands moved, and where it has data still."""
    angle = generator.uniform(0, 2 * math.pi)
    step = (distance * math.sin(angle), distance * math.cos(angle))
    image = scene.image.copy()
    for band in bands:
        image[band] = ndimage.shift(scene.image[band], step, order=1, mode="nearest")
    whole = ndimage.shift(scene.valid.astype(np.float64), step, order=1, mode="constant")
    return image, scene.valid & (whole > 1 - 1e-6)
