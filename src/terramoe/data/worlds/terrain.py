"""Terrain: a fractal surface, its slope and its aspect."""

from __future__ import annotations

import numpy as np

from terramoe.data.worlds.fields import rough_field

HURST = 0.9  # roughness of the surface: measured landscapes lie between 0.6 and 0.95, the higher the smoother


def elevation(size: int, relief: float, generator: np.random.Generator) -> np.ndarray:
    """(size, size) heights in metres from 0 up, with ``relief`` metres of standard deviation."""
    surface = relief * rough_field(size, 2 * HURST + 2, generator)
    return surface - surface.min()


def slope_aspect(heights: np.ndarray, pixel: float = 10.0) -> tuple[np.ndarray, np.ndarray]:
    """Slope, and aspect: the direction in which the ground falls, clockwise from north. Both (H, W), in radians.

    Rows run south, columns east. Heights and ``pixel`` are in metres.
    """
    to_south, to_east = np.gradient(heights, pixel)
    slope = np.arctan(np.hypot(to_south, to_east))
    return slope, np.arctan2(-to_east, to_south) % (2 * np.pi)
