"""Phenology: how green vegetation is, by latitude and day of the year.

One season is a rise and a fall, two logistic curves: Improved monitoring of vegetation dynamics at very high
latitudes, 2006, doi:10.1016/j.rse.2005.10.021. Spring comes four days later per degree of latitude: Periodical events
and natural law as guides to agricultural research and practice, 1918 (Hopkins' bioclimatic law); the fall stays, so the
season gets shorter and its peak moves by two days per degree. The southern hemisphere is half a year behind.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import expit

YEAR = 365.0
REFERENCE_LATITUDE = 45.0  # where calendars are stated
DAYS_PER_DEGREE = 4.0
SHORTEST, LONGEST = 30.0, 360.0  # days of season
STEEPNESS = 10.0  # days in which greenness rises by a factor e from low values

DORMANT, GREEN_UP, PEAK, SENESCENCE = range(4)


@dataclass(frozen=True)
class Calendar:
    """The season of one kind of vegetation at 45 degrees north.

    Attributes:
        start, end: days of the year at which it is half green, rising and falling.
        floor: how green it stays out of season; 0 for a harvested crop, near 1 for an evergreen.
    """

    start: float
    end: float
    floor: float = 0.0


ORDINARY = Calendar(110, 290)  # deciduous trees: what the season of a place is named by


def greenness(calendar: Calendar, day: float | np.ndarray, latitude: float | np.ndarray) -> np.ndarray:
    """Green share of the cover, 0 to 1.

    Args:
        day: of the year, from 1; any real number, the year repeats.
        latitude: in degrees, negative in the south.
    """
    start, end = _season(calendar, latitude)
    local = np.where(np.asarray(latitude) < 0, day - YEAR / 2, day) % YEAR
    season = sum(
        expit((local - start + turn) / STEEPNESS) - expit((local - end + turn) / STEEPNESS)
        for turn in (-YEAR, 0.0, YEAR)  # the seasons of the neighbouring years reach into this one
    )
    return calendar.floor + (1 - calendar.floor) * np.clip(season, 0.0, 1.0)


def season_of(day: float, latitude: float | np.ndarray) -> np.ndarray:
    """The phase of the ordinary calendar: DORMANT, GREEN_UP, PEAK or SENESCENCE, as integers."""
    green = greenness(ORDINARY, day, latitude)
    rising = greenness(ORDINARY, day + 1, latitude) > green
    return np.where(green < 0.2, DORMANT, np.where(green > 0.8, PEAK, np.where(rising, GREEN_UP, SENESCENCE)))


def _season(calendar: Calendar, latitude: float | np.ndarray) -> tuple[np.ndarray, float]:
    start = calendar.start + DAYS_PER_DEGREE * (np.abs(latitude) - REFERENCE_LATITUDE)
    return np.clip(start, calendar.end - LONGEST, calendar.end - SHORTEST), calendar.end
