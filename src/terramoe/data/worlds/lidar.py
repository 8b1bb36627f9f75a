"""Airborne LiDAR: the height of the surface, and of the objects on the ground."""

from __future__ import annotations

import numpy as np

from terramoe.data.worlds.fields import cells, smooth_field

RANGE_NOISE = 0.15  # metres
CANOPY = 0.7  # pixels: crowns are smaller than a field of trees
BLOCK = 40  # pixels: mean area under one roof line


def object_heights(
    mean: np.ndarray, spread: np.ndarray, roofed: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """(H, H) heights in metres above ground, from those that the class of each pixel prescribes; none below 0.

    Args:
        mean, spread: (H, H) metres. roofed: (H, H) bool, where heights are constant over blocks.
    """
    size = len(mean)
    crowns = smooth_field(size, CANOPY, generator)
    blocks = cells(size, max(1, size * size // BLOCK), generator)
    roofs = generator.standard_normal(blocks.max() + 1)[blocks]
    return np.maximum(mean + spread * np.where(roofed, roofs, crowns), 0)


def surfaces(terrain: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """(2, H, W): height of the surface above sea level, and above the ground, in metres."""
    return np.stack([terrain + objects, objects])


def ranged(heights: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """The same with one range error a pixel, which both heights share."""
    return heights + RANGE_NOISE * generator.standard_normal(heights.shape[1:])
