"""Routings of which the cause is known, to test the probe that looks for it."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from terramoe.evaluation.probe import Factor

SIDE, BLOCK, REGION = 24, 4, 12  # items along each side of the map, of a block, of a region
IMAGES, EXPERTS = 12, 3
REACH = 2.0  # items over which classes, and whatever else experts may follow, stay alike


def candidate_factors(generator: np.random.Generator) -> dict[str, Factor]:
    """Twelve images of one place: class and place lie on the map, sensor and season belong to the image."""
    row, column = np.mgrid[:SIDE, :SIDE]
    image = np.repeat(np.arange(IMAGES), SIDE * SIDE)
    positions = np.stack([image, *(np.tile(axis.ravel(), IMAGES) for axis in (row, column))], axis=1)
    block = np.tile((row // BLOCK * SIDE + column // BLOCK).ravel(), IMAGES)
    maps = {"class": in_thirds(field(generator)), "place": row // REGION * (SIDE // REGION) + column // REGION}
    factors = {name: Factor(np.tile(m.ravel(), IMAGES), block, positions) for name, m in maps.items()}
    for name, kinds in (("sensor", 2), ("season", 3)):
        factors[name] = Factor(generator.permutation(np.arange(IMAGES) % kinds)[image], image)
    return factors


def simulate_routing(cause: np.ndarray | None, generator: np.random.Generator) -> np.ndarray:
    """(N,) experts that follow a factor's values on half of the items, in patches, and nothing known on the others.

    Without a cause they follow a map that nobody asks for, smooth and nearly the same in all images: the case in which
    a test that takes items as independent raises an alarm.
    """
    unknown = np.stack([field(generator)] * IMAGES) + np.stack([field(generator) for _ in range(IMAGES)])
    experts = in_thirds(unknown).ravel()
    if cause is None:
        return experts
    follows = np.stack([field(generator) for _ in range(IMAGES)]).ravel() > 0
    return np.where(follows, generator.permutation(EXPERTS)[cause % EXPERTS], experts)


def field(generator: np.random.Generator) -> np.ndarray:
    """(SIDE, SIDE) smooth random map."""
    return ndimage.gaussian_filter(generator.standard_normal((SIDE, SIDE)), REACH)


def in_thirds(values: np.ndarray) -> np.ndarray:
    """0, 1, 2 for the lowest, middle and highest third."""
    return np.digitize(values, np.quantile(values, [1 / 3, 2 / 3]))
