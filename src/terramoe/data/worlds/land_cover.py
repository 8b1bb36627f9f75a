"""Land cover: what the classes are made of, and a map of them in given shares, however rare."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from terramoe.data.worlds.fields import cells, smooth_field
from terramoe.data.worlds.phenology import ORDINARY, Calendar

PATCH = 5.0  # pixels: typical structure of natural cover
PARCEL = 110  # pixels: mean area of a field, 1.1 hectares at 10 m


@dataclass(frozen=True)
class Cover:
    """One class of land cover.

    Attributes:
        habitat: where it lies: "low" or "high" ground, natural "patches", or whole "parcels".
        green, dormant: materials of ``spectra`` in and out of season.
        calendar: its season, None where nothing grows.
        radar: backscatter in decibels, (VV, VH) in season and (VV, VH) out of it; round figures for C band.
        height: of the objects on the ground, in metres: mean and standard deviation.
        roofed: heights are constant over small blocks instead of varying from pixel to pixel.
    """

    habitat: Literal["low", "high", "patches", "parcels"]
    green: str
    dormant: str
    calendar: Calendar | None
    radar: tuple[tuple[float, float], tuple[float, float]]
    height: tuple[float, float] = (0.0, 0.0)
    roofed: bool = False


_SOIL_RADAR = (-13.0, -22.0)

COVERS: Mapping[str, Cover] = {
    "water": Cover("low", "water", "water", None, ((-20.0, -28.0), (-20.0, -28.0))),
    "sand": Cover("low", "sand", "sand", None, ((-17.0, -26.0), (-17.0, -26.0))),
    "rock": Cover("high", "rock", "rock", None, ((-10.0, -19.0), (-10.0, -19.0)), (0.5, 0.3)),
    "snow": Cover("high", "snow", "snow", None, ((-16.0, -23.0), (-16.0, -23.0)), (1.0, 0.3)),
    "built-up": Cover("patches", "roofs", "roofs", None, ((-4.0, -11.0), (-4.0, -11.0)), (9.0, 3.0), roofed=True),
    "broadleaf forest": Cover("patches", "broadleaf", "straw", ORDINARY, ((-9.0, -14.5), (-10.5, -17.0)), (18.0, 3.0)),
    "needleleaf forest": Cover(
        "patches", "needleleaf", "dark soil", Calendar(110, 290, 0.9), ((-9.5, -15.0), (-10.0, -16.0)), (22.0, 3.0)
    ),
    "grassland": Cover("patches", "grass", "straw", Calendar(90, 310, 0.2), ((-12.0, -19.0), _SOIL_RADAR), (0.3, 0.1)),
    "wheat": Cover("parcels", "wheat", "straw", Calendar(75, 190), ((-13.5, -19.5), _SOIL_RADAR), (0.8, 0.1)),
    "maize": Cover("parcels", "maize", "dark soil", Calendar(150, 270), ((-9.0, -15.0), _SOIL_RADAR), (2.2, 0.2)),
    "soybean": Cover(
        "parcels", "soybean", "bright soil", Calendar(165, 275), ((-11.0, -17.0), _SOIL_RADAR), (0.7, 0.1)
    ),
    "bare soil": Cover("parcels", "bright soil", "bright soil", None, (_SOIL_RADAR, _SOIL_RADAR)),
}


def land_cover(shares: Mapping[str, float], ground: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A map of classes 1..K in the order of ``shares``.

    Class by class, from the first, the free pixels of highest score are taken: the lowest or highest ground, the
    hills of a smooth field of its own, or whole parcels (the last of which may be cut). So every class has its share
    to the pixel, however rare it is; the last takes what is left.

    Args:
        shares: class of ``COVERS`` -> share of the area; they sum to 1.
        ground: (size, size) heights.
    """
    size = len(ground)
    parcels = cells(size, max(1, size * size // PARCEL), generator)
    labels = np.zeros(size * size, dtype=np.int64)
    for number, (name, share) in enumerate(shares.items(), start=1):
        score = _score(COVERS[name].habitat, ground, parcels, generator).ravel()
        free = np.flatnonzero(labels == 0)
        count = free.size if number == len(shares) else min(round(share * size * size), free.size)
        labels[free[np.argsort(-score[free], kind="stable")[:count]]] = number
    return labels.reshape(size, size)


def _score(habitat: str, ground: np.ndarray, parcels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    if habitat == "low":
        return -ground
    if habitat == "high":
        return ground
    if habitat == "parcels":
        return generator.random(parcels.max() + 1)[parcels]
    return smooth_field(len(ground), PATCH, generator)
