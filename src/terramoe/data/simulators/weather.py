"""Daily weather of a season at many places: temperature, rain, sunshine and humidity, simulated by latitude.

Temperatures are in degrees Celsius, rain and evaporation in mm a day, radiation in MJ/m2 a day, heights in m. The
climate (means by latitude) is a stand-in of ours; how days vary and hang together, and the physics of sun and
evaporation, follow the sources.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.signal import lfilter

from terramoe.data.simulators.limits import between, count
from terramoe.data.worlds.fields import stream
from terramoe.errors import DataError

LAPSE = 0.0065  # K per m
PERSISTENCE = 0.65  # of temperature from day to day
WET_AFTER_WET = 0.35  # what a wet day adds to the chance that the next one is wet


class Weather(NamedTuple):
    """(S, D) of S places and D days: lowest and highest temperature, rain, sunshine (MJ/m2) and relative humidity 0..1;
    latitude (S,) and day of the year (D,).
    """

    low: np.ndarray
    high: np.ndarray
    rain: np.ndarray
    radiation: np.ndarray
    humidity: np.ndarray
    latitude: np.ndarray
    day: np.ndarray


def extraterrestrial_radiation(latitude: ArrayLike, day: ArrayLike) -> np.ndarray:
    """Daily sunshine above the atmosphere, MJ/m2; 0 in the polar night. Both broadcast.

    Crop evapotranspiration: guidelines for computing crop water requirements, FAO irrigation and drainage paper 56,
    1998, equations 21 to 25.
    """
    phi = np.radians(between(latitude, -90, 90, "latitude", "extraterrestrial_radiation"))
    year = 2 * np.pi * np.asarray(day, dtype=float) / 365
    tilt = 0.409 * np.sin(year - 1.39)
    sunset = np.arccos(np.clip(-np.tan(phi) * np.tan(tilt), -1, 1))
    lit = sunset * np.sin(phi) * np.sin(tilt) + np.cos(phi) * np.cos(tilt) * np.sin(sunset)
    return np.maximum(24 * 60 / np.pi * 0.0820 * (1 + 0.033 * np.cos(year)) * lit, 0)


def vapour_pressure(temperature: ArrayLike) -> np.ndarray:
    """At saturation, kPa: FAO paper 56, 1998, equation 11."""
    temperature = np.asarray(temperature, dtype=float)
    return 0.6108 * np.exp(17.27 * temperature / (temperature + 237.3))


def reference_evaporation(weather: Weather) -> np.ndarray:
    """(S, D) mm a day: Reference crop evapotranspiration from temperature, 1985, doi:10.13031/2013.26773.

    0.0023 Ra (T + 17.8) sqrt(Tmax - Tmin), Ra in mm of evaporation (0.408 mm per MJ/m2); 0 below -17.8 degrees.
    """
    above = 0.408 * extraterrestrial_radiation(weather.latitude[:, None], weather.day)
    mean = (weather.low + weather.high) / 2
    return 0.0023 * above * np.maximum(mean + 17.8, 0) * np.sqrt(np.maximum(weather.high - weather.low, 0))


def simulate_weather(
    latitude: ArrayLike, elevation: ArrayLike, first_day: int, days: int, seed: int, *, wetness: ArrayLike = 1.0
) -> Weather:
    """Days of weather, each place for itself: rain by a two-state Markov chain with exponential amounts, temperature
    autoregressive around its season and lower on wet days.

    Stochastic simulation of daily precipitation, temperature, and solar radiation, 1981, doi:10.1029/WR017i001p00182.
    Radiation is 0.16 sqrt(Tmax - Tmin) of that above the atmosphere (FAO paper 56, equation 50); the air is saturated
    at the lowest temperature (its equation 48).

    Args:
        latitude, elevation: (S,) degrees and m. first_day: of the year, 1 to 366. wetness: of the rain, (S,) or one.

    Raises:
        ConfigError: values out of range. DataError: latitude and elevation of different lengths.
    """
    latitude = between(np.atleast_1d(latitude), -70, 70, "latitude", "simulate_weather")
    elevation = between(np.atleast_1d(elevation), -430, 6000, "elevation", "simulate_weather")
    if latitude.ndim != 1 or latitude.shape != elevation.shape:
        raise DataError("latitude and elevation differ in shape", where="simulate_weather", fix="give two arrays (S,)")
    wetness = np.broadcast_to(between(wetness, 0, 10, "wetness", "simulate_weather"), latitude.shape)[:, None]
    between(first_day, 1, 366, "first_day", "simulate_weather")
    day = (first_day - 1 + np.arange(count(days, "days", "simulate_weather"))) % 365 + 1
    shape = (latitude.size, day.size)
    mean, swing, chance = _climate(latitude, day)
    wet = _wet_days(chance, stream(seed, "weather", "wet"))
    amount = stream(seed, "weather", "amount").exponential(7.0, shape) * wetness
    shock = stream(seed, "weather", "temperature").standard_normal(shape) * np.sqrt(1 - PERSISTENCE**2)
    shock[:, 0] /= np.sqrt(1 - PERSISTENCE**2)  # the first day is as uncertain as any
    anomaly = 3.0 * lfilter([1], [1, -PERSISTENCE], shock, axis=1)
    middle = mean - LAPSE * elevation[:, None] + anomaly - 1.5 * wet
    half = 0.5 * swing * np.where(wet, 0.6, 1.1) * stream(seed, "weather", "range").uniform(0.7, 1.3, shape)
    low, high = middle - half, middle + half
    above = extraterrestrial_radiation(latitude[:, None], day)
    return Weather(
        low,
        high,
        np.where(wet, amount, 0.0),
        np.minimum(0.16 * np.sqrt(high - low), 0.78) * above,
        vapour_pressure(low) / ((vapour_pressure(low) + vapour_pressure(high)) / 2),
        latitude,
        day,
    )


def _climate(latitude: np.ndarray, day: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean temperature (S, D) at sea level, daily range (S, D) and chance of rain (S, D)."""
    away = np.abs(latitude)[:, None]
    season = np.cos(2 * np.pi * (day - np.where(latitude < 0, 18, 201)[:, None]) / 365)  # warmest in July or January
    mean = 27 - 36 * np.sin(np.radians(away)) ** 2 + 0.3 * away * season
    swing = 9.0 + 1.5 * season * np.ones_like(away)
    tropics, fronts = np.exp(-((away / 12) ** 2)), np.exp(-(((away - 50) / 15) ** 2))
    chance = 0.12 + 0.35 * tropics + 0.22 * fronts + 0.05 * season * (away < 35)
    return mean, swing, chance


def _wet_days(chance: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """(S, D) bool Markov chain whose share of wet days is ``chance`` (where that is constant)."""
    draw = generator.random(chance.shape)
    wet = np.empty(chance.shape, dtype=bool)
    wet[:, 0] = draw[:, 0] < chance[:, 0]
    for day in range(1, chance.shape[1]):
        wet[:, day] = draw[:, day] < chance[:, day] * (1 - WET_AFTER_WET) + WET_AFTER_WET * wet[:, day - 1]
    return wet
