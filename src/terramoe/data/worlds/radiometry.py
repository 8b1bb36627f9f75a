"""Radiometry: the sun, the light on a slope, and the gain and offset of a region's image."""

from __future__ import annotations

import numpy as np

DIFFUSE = 0.15  # share of the light that comes from the whole sky: also what is left in a cloud's shadow
OVERPASS = 10.5  # local solar time in hours, as of most satellites with optical sensors

SHADED, LEVEL, SUNLIT = range(3)


def sun_position(day: float, latitude: np.ndarray, hour: float = OVERPASS) -> tuple[np.ndarray, np.ndarray]:
    """Zenith angle and azimuth (clockwise from north) of the sun, in radians.

    Declination: The absorption of radiation in solar stills, 1969, doi:10.1016/0038-092X(69)90047-4.

    Args:
        day: of the year, from 1. latitude: in degrees. hour: local solar time.
    """
    declination = np.radians(23.45) * np.sin(2 * np.pi * (284 + day) / 365)
    turn = np.radians(15 * (hour - 12))
    phi = np.radians(latitude)
    up = np.sin(phi) * np.sin(declination) + np.cos(phi) * np.cos(declination) * np.cos(turn)
    east = -np.cos(declination) * np.sin(turn)
    north = np.sin(declination) * np.cos(phi) - np.cos(declination) * np.sin(phi) * np.cos(turn)
    return np.arccos(np.clip(up, -1, 1)), np.arctan2(east, north) % (2 * np.pi)


def cosine_of_incidence(
    slope: np.ndarray, aspect: np.ndarray, zenith: np.ndarray | float, azimuth: np.ndarray | float
) -> np.ndarray:
    """Cosine of the angle between sun and surface normal; below 0 where the surface faces away. Radians."""
    return np.cos(zenith) * np.cos(slope) + np.sin(zenith) * np.sin(slope) * np.cos(azimuth - aspect)


def illumination(
    slope: np.ndarray,
    aspect: np.ndarray,
    zenith: np.ndarray | float,
    azimuth: np.ndarray | float,
    *,
    diffuse: float = DIFFUSE,
    direct: np.ndarray | float = 1.0,
) -> np.ndarray:
    """Light on the ground relative to level, unshaded ground: exactly 1 there, ``diffuse`` where no sun arrives.

    Direct light follows the cosine law: On the slope-aspect correction of multispectral scanner data, 1982,
    doi:10.1080/07038992.1982.10855028. The sky is taken as equally bright for all slopes; shadows that hills cast on
    other hills are left out.

    Args:
        direct: share of the direct light that clouds let through.
    """
    facing = np.maximum(cosine_of_incidence(slope, aspect, zenith, azimuth), 0) / np.cos(zenith)
    return diffuse + (1 - diffuse) * direct * facing


def light_class(factor: np.ndarray) -> np.ndarray:
    """SHADED below 0.85, SUNLIT above 1.15, LEVEL between, as integers."""
    return np.where(factor < 0.85, SHADED, np.where(factor > 1.15, SUNLIT, LEVEL))


def region_radiometry(
    haze: np.ndarray, centres: np.ndarray, gain_spread: float, offset_spread: float, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Gain and offset (R, B) of each region and band: what calibration and atmosphere do to reflectance.

    Gains scatter around 1; offsets are path light of the air, which falls with the fourth power of wavelength
    (Rayleigh), plus scatter.

    Args:
        haze: (R,) path light at 450 nm, as reflectance. centres: (B,) nanometres.
        gain_spread, offset_spread: standard deviations.
    """
    shape = (len(haze), len(centres))
    gain = 1 + gain_spread * generator.standard_normal(shape)
    path = np.asarray(haze)[:, None] * (450 / np.asarray(centres)) ** 4
    return gain, path + offset_spread * generator.standard_normal(shape)
