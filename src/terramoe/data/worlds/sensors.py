"""Sensors: which bands they have, and how they sample the ground."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.ndimage import gaussian_filter, shift

PIXEL = 10  # metres: the grid on which the ground is simulated
COARSEST = 60  # metres
CHIP = 24  # pixels of the ground: what is missing is missing in squares of this side, a multiple of 60 m


@dataclass(frozen=True)
class Band:
    """One band: its centre and full width at half maximum in nanometres, 0 where it has no wavelength."""

    name: str
    centre: float = 0.0
    width: float = 0.0


@dataclass(frozen=True)
class Sensor:
    """Bands of one sampling distance.

    Attributes:
        name: of the product.
        platform: what carries it; sensors of one platform are missing, and displaced, together.
        kind: "optical" (reflectance), "radar" (backscattered power) or "lidar" (metres).
        spacing: metres between pixels, 10, 20 or 60.
        bands: in order.
        once: flown at the first date only.
    """

    name: str
    platform: str
    kind: Literal["optical", "radar", "lidar"]
    spacing: int
    bands: tuple[Band, ...]
    once: bool = False

    @property
    def factor(self) -> int:
        """Pixels of the ground along one side of a pixel of this sensor."""
        return self.spacing // PIXEL


# Centres and widths as published for Sentinel-2A's instrument; the cirrus band sees no ground and is left out.
OPTICAL10 = Sensor(
    "optical10",
    "optical",
    "optical",
    10,
    (Band("B02", 492.4, 66), Band("B03", 559.8, 36), Band("B04", 664.6, 31), Band("B08", 832.8, 106)),
)
OPTICAL20 = Sensor(
    "optical20",
    "optical",
    "optical",
    20,
    (
        Band("B05", 704.1, 15),
        Band("B06", 740.5, 15),
        Band("B07", 782.8, 20),
        Band("B8A", 864.7, 21),
        Band("B11", 1613.7, 91),
        Band("B12", 2202.4, 175),
    ),
)
OPTICAL60 = Sensor("optical60", "optical", "optical", 60, (Band("B01", 442.7, 21), Band("B09", 945.1, 20)))
RADAR = Sensor("radar", "radar", "radar", 10, (Band("VV"), Band("VH")))
LIDAR = Sensor("lidar", "lidar", "lidar", 10, (Band("surface"), Band("height")), once=True)


def point_spread(image: np.ndarray, width: float) -> np.ndarray:
    """(..., H, W) blurred by a Gaussian of this full width at half maximum, in pixels; 0 leaves it as it is."""
    if width == 0:
        return image
    sigma = width / np.sqrt(8 * np.log(2))
    return gaussian_filter(image, (0,) * (image.ndim - 2) + (sigma, sigma), mode="mirror")


def displace(image: np.ndarray, rows: float, columns: float) -> np.ndarray:
    """(..., H, W) moved down and right by fractions of a pixel (cubic splines, mirrored at the border)."""
    if rows == 0 and columns == 0:
        return image
    return shift(image, (0,) * (image.ndim - 2) + (rows, columns), order=3, mode="mirror")


def area_mean(image: np.ndarray, factor: int) -> np.ndarray:
    """(..., H, W) -> (..., H / factor, W / factor): the mean over square blocks."""
    *rest, height, width = image.shape
    return image.reshape(*rest, height // factor, factor, width // factor, factor).mean(axis=(-3, -1))


def observe(image: np.ndarray, sensor: Sensor, *, blur: float, offset: tuple[float, float]) -> np.ndarray:
    """What a sensor samples of (bands, H, W) on the ground's grid, before its noise.

    Args:
        blur: full width at half maximum of the point spread, in pixels of the sensor.
        offset: mis-registration in metres, (south, east).
    """
    blurred = point_spread(image, blur * sensor.factor)
    return area_mean(displace(blurred, offset[0] / PIXEL, offset[1] / PIXEL), sensor.factor)


def missing_chips(size: int, rate: float, generator: np.random.Generator) -> np.ndarray:
    """(size, size) bool: True in the squares that were not delivered, each with probability ``rate``."""
    chips = -(-size // CHIP)
    lost = generator.random((chips, chips)) < rate
    return np.kron(lost, np.ones((CHIP, CHIP), dtype=bool))[:size, :size]
