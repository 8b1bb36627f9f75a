"""Clouds, and the shadows that they cast where the sun puts them."""

from __future__ import annotations

import numpy as np

from terramoe.data.worlds.fields import rough_field

BRIGHTNESS = 0.75  # reflectance of a cloud that lets nothing through, in every band
DENSITY = 5.0  # optical depth gained per standard deviation of the cloud field: edges are thin, cores opaque

CLEAR, SHADOW, CLOUD = range(3)


def cloud_opacity(size: int, cover: float, generator: np.random.Generator) -> np.ndarray:
    """(size, size) share of light that clouds stop: above 0 on a share ``cover`` of the pixels, 0 elsewhere."""
    field = rough_field(size, 3.0, generator)
    count = round(cover * size * size)
    if count == 0:
        return np.zeros((size, size))
    if count == size * size:
        return np.ones((size, size))
    edge = -np.partition(-field.ravel(), count)[count]  # the highest value outside
    return 1 - np.exp(-DENSITY * np.maximum(field - edge, 0))


def shadow_shift(height: float, zenith: float, azimuth: float, pixel: float = 10.0) -> tuple[int, int]:
    """Rows (south) and columns (east) from a cloud to its shadow: height x tan(zenith), away from the sun.

    Object-based cloud and cloud shadow detection in Landsat imagery, 2012, doi:10.1016/j.rse.2011.10.028.

    Args:
        height: of the cloud, in metres. zenith, azimuth: of the sun, in radians. pixel: in metres.
    """
    length = height * np.tan(zenith) / pixel
    return round(length * np.cos(azimuth)), round(-length * np.sin(azimuth))


def cast(opacity: np.ndarray, shift: tuple[int, int]) -> np.ndarray:
    """The opacity that direct light has met where it reaches the ground.

    The cloud field is periodic, so what leaves on one side stands for the clouds beyond the other.
    """
    return np.roll(opacity, shift, axis=(0, 1))


def veil(reflectance: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    """(bands, H, W) as seen from above the clouds."""
    return (1 - opacity) * reflectance + opacity * BRIGHTNESS


def sky_class(opacity: np.ndarray, shadow: np.ndarray) -> np.ndarray:
    """CLOUD where any cloud stands above, SHADOW where one stands before the sun, else CLEAR, as integers."""
    return np.where(opacity > 0, CLOUD, np.where(shadow > 0, SHADOW, CLEAR))
