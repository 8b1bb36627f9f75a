"""Warm rain over hills: moist air that a wind carries, lifts and wrings out, seen hour by hour as by a weather model.

One layer of air, ``DEPTH`` thick, on a square grid whose edges join. Vapour, cloud and rain water are mixing ratios in
kg/kg, temperatures in K, lift and wind in m/s, the sides of cells in m, precipitation in mm in an hour. The
microphysics is Kessler's (no ice); that the layer is lifted as a whole, and what drives it, is a stand-in of ours.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.ndimage import gaussian_filter1d

from terramoe.data.simulators.limits import between, count
from terramoe.data.worlds.fields import rough_field, stream

DENSITY, PRESSURE, DEPTH = 1.05, 85_000.0, 3000.0  # of the layer: kg/m3, Pa, m
MIDDLE = 288.0  # K, temperature that the layer returns to, on average over the day
LATENT, HEAT, GAS, DRY = 2.5e6, 1004.0, 461.5, 9.81 / 1004.0  # J/kg, J/kg/K, J/kg/K of vapour, K/m
CONVERSION, THRESHOLD, COLLECTION = 1e-3, 5e-4, 2.2  # 1/s, kg/kg, 1/s: of auto-conversion and accretion
WARMING, MOISTENING, HUMIDITY = 3 * 3600.0, 6 * 3600.0, 0.85  # s, s, and the relative humidity that the ground feeds
SECONDS, SPIN_UP = 90.0, 12  # of a step, and hours that are not kept
GROUPS = {  # what a forecast model hands on, by the six groups of knowledge
    "Momentum": ("u", "v", "lift"),
    "Temperature": ("temperature", "dew point"),
    "Moisture": ("precipitation", "relative humidity", "vapour"),
    "Mass": ("cloud base pressure", "cloud top pressure"),
    "Cloud": ("cover", "liquid path"),
    "Radiation": ("window channel", "vapour channel"),
}
VARIABLES = tuple(name for names in GROUPS.values() for name in names)


class Rain(NamedTuple):
    """T hours on a grid of S x S cells.

    Attributes:
        fields: (T, V, S, S) float32 at the end of each hour, in the order of VARIABLES; temperatures and channels in K,
            pressures in hPa, vapour in g/kg, humidity and cover 0 to 1, liquid path in kg/m2. "precipitation" is (as
            all else here) what is known at the end of the hour: the sum of that hour, mm.
        height: (S, S) of the ground, m.
        water: (T + 1,) mean water in the layer, kg/m2, from the start on. fed: (T,) from the ground, kg/m2 in the hour.
    """

    fields: np.ndarray
    height: np.ndarray
    water: np.ndarray
    fed: np.ndarray

    @property
    def precipitation(self) -> np.ndarray:
        """(T, S, S) mm in the hour."""
        return self.fields[:, VARIABLES.index("precipitation")]


class CellRows(NamedTuple):
    """N cells at some hour, from which the precipitation of the next hour is to be told.

    Attributes:
        values: (N, V x hours x neighbours) float64, variable by variable, in it hour by hour (the last is now), in it
            the square of neighbours row by row. target: (N,) mm in the next hour. now: (N,) mm in the last hour.
        hour, row, column: (N,) int64.
    """

    values: np.ndarray
    target: np.ndarray
    now: np.ndarray
    hour: np.ndarray
    row: np.ndarray
    column: np.ndarray


def saturation(temperature: ArrayLike) -> np.ndarray:
    """Mixing ratio of saturated air at PRESSURE.

    The computation of equivalent potential temperature, 1980, doi:10.1175/1520-0493(1980)108<1046:TCOEPT>2.0.CO;2,
    equation 10.
    """
    celsius = between(temperature, 200, 330, "temperature", "saturation") - 273.15
    vapour = 611.2 * np.exp(17.67 * celsius / (celsius + 243.5))
    return 0.622 * vapour / (PRESSURE - vapour)


def autoconversion(cloud: ArrayLike) -> np.ndarray:
    """kg/kg/s of cloud that turns into rain by itself: CONVERSION x what exceeds THRESHOLD.

    On the Distribution and Continuity of Water Substance in Atmospheric Circulations, 1969,
    doi:10.1007/978-1-935704-36-2_1; constants as in The Simulation of Three-Dimensional Convective Storm Dynamics,
    1978, doi:10.1175/1520-0469(1978)035<1070:TSOTDC>2.0.CO;2, with half of its threshold.
    """
    return CONVERSION * np.maximum(np.asarray(cloud, dtype=float) - THRESHOLD, 0)


def accretion(cloud: ArrayLike, rain: ArrayLike) -> np.ndarray:
    """kg/kg/s of cloud that falling rain collects: COLLECTION x cloud x rain^0.875 (sources as ``autoconversion``)."""
    return COLLECTION * np.asarray(cloud, dtype=float) * np.maximum(rain, 0.0) ** 0.875


def fall_speed(rain: ArrayLike) -> np.ndarray:
    """m/s of rain water, 36.34 (0.001 density x rain)^0.1346 (The Simulation of ..., 1978)."""
    return 36.34 * (1e-3 * DENSITY * np.maximum(rain, 0.0)) ** 0.1346


def rain_evaporation(vapour: ArrayLike, rain: ArrayLike, temperature: ArrayLike) -> np.ndarray:
    """kg/kg/s of rain that evaporates into air short of saturation (The Simulation of ..., 1978)."""
    full, content = saturation(temperature), 1e-3 * DENSITY * np.maximum(rain, 0.0)
    ventilation = 1.6 + 124.9 * content**0.2046
    lacking = np.maximum(1 - np.asarray(vapour, dtype=float) / full, 0)
    return lacking * ventilation * content**0.525 / (2.55e8 / (PRESSURE * full) + 5.4e5) / (1e-3 * DENSITY)


def condense(temperature: np.ndarray, vapour: np.ndarray, cloud: np.ndarray) -> tuple[np.ndarray, ...]:
    """Temperature, vapour and cloud after condensation or evaporation to saturation; water and heat are kept.

    Two steps of Newton's method from where it stands; as much cloud evaporates as there is.
    """
    for _ in range(2):
        full = saturation(temperature)
        change = (vapour - full) / (1 + LATENT**2 * full / (HEAT * GAS * temperature**2))
        change = np.maximum(change, -cloud)
        temperature, vapour, cloud = temperature + LATENT / HEAT * change, vapour - change, cloud + change
    return temperature, vapour, cloud


def microphysics(
    temperature: np.ndarray, vapour: np.ndarray, cloud: np.ndarray, rain: np.ndarray, seconds: float
) -> tuple[np.ndarray, ...]:
    """One step -> temperature, vapour, cloud, rain and what fell to the ground (kg/kg of the layer)."""
    temperature, vapour, cloud = condense(temperature, vapour, cloud)
    turned = np.minimum((autoconversion(cloud) + accretion(cloud, rain)) * seconds, cloud)
    cloud, rain = cloud - turned, rain + turned
    dried = np.minimum(rain_evaporation(vapour, rain, temperature) * seconds, rain)
    rain, vapour, temperature = rain - dried, vapour + dried, temperature - LATENT / HEAT * dried
    fallen = rain * -np.expm1(-fall_speed(rain) * seconds / DEPTH)
    return temperature, vapour, cloud, rain - fallen, fallen


def carry(fields: np.ndarray, across: float, axis: int) -> np.ndarray:
    """Fields moved ``across`` cells (-1..1) along an axis whose ends join: sums are kept and no new extremes arise.

    Upwind with van Leer's limiter: Towards the ultimate conservative difference scheme. II, 1974,
    doi:10.1016/0021-9991(74)90019-9.
    """
    if across < 0:
        return np.flip(carry(np.flip(fields, axis), -across, axis), axis)
    ahead = np.roll(fields, -1, axis) - fields
    behind = np.roll(ahead, 1, axis)
    both = ahead * behind
    slope = np.where(both > 0, 2 * both / np.where(both > 0, ahead + behind, 1.0), 0.0)
    flux = across * (fields + 0.5 * (1 - across) * slope)
    return fields - flux + np.roll(flux, 1, axis)


def simulate_rain(
    hours: int = 300, seed: int = 0, *, size: int = 64, cell: float = 3000.0, relief: float = 250.0, lift: float = 0.05
) -> Rain:
    """Hours of weather, after SPIN_UP that are not kept.

    The wind is one for all cells and turns over a day; air is lifted by slopes that it meets, and by a pattern (of
    standard deviation ``lift``) that it carries and that is a third new after an hour.

    Args:
        cell: side of a cell. relief: standard deviation of the ground's height, m.

    Raises:
        ConfigError: values out of range.
    """
    hours, size = count(hours, "hours", "simulate_rain"), count(size, "size", "simulate_rain", 8)
    between(cell, 2000, 50_000, "cell", "simulate_rain")  # smaller ones would be crossed within a step
    between([relief / 1000, lift], 0, 1, "relief in km or lift", "simulate_rain")
    height = relief * rough_field(size, 4.0, stream(seed, "rain", "ground"))
    slope = [(np.roll(height, -1, a) - np.roll(height, 1, a)) / (2 * cell) for a in (1, 0)]
    noise = stream(seed, "rain", "wind").standard_normal((2, hours + SPIN_UP + 96))
    gusts = gaussian_filter1d(noise, 12.0, axis=1)[:, 48:-48] * np.sqrt(2 * 12.0 * np.sqrt(np.pi))
    winds = np.clip([[6.0], [2.0]] + 4.0 * gusts, -14, 14)  # below a cell a step
    generator = stream(seed, "rain", "lift")
    pattern = rough_field(size, 3.0, generator)
    air = np.stack([np.full((size, size), v) for v in (MIDDLE, HUMIDITY * float(saturation(MIDDLE)), 0.0, 0.0)])
    kept, water, fed = [], [], []
    for hour in range(hours + SPIN_UP):
        if hour >= SPIN_UP:
            water.append(_water(air))
        wind = winds[:, hour]
        target = MIDDLE + 2.0 * np.sin(2 * np.pi * (hour - 9) / 24)
        air, pattern, rate, fell, given = _hour(air, pattern, wind, slope, lift, target, cell)
        if hour >= SPIN_UP:
            kept.append(_observed(air, wind, rate, fell, target))
            fed.append(given)
        pattern = 0.75 * pattern + np.sqrt(1 - 0.75**2) * rough_field(size, 3.0, generator)
    return Rain(np.array(kept, dtype=np.float32), height, np.array([*water, _water(air)]), np.array(fed))


def cell_rows(rain: Rain, cells: int, seed: int, *, hours: int = 2, reach: int = 2) -> CellRows:
    """``cells`` random cells of each hour that has ``hours`` up to it and one after it, as rows.

    ``reach`` is how many cells the neighbourhood goes to each side: 2 gives 5 x 5 neighbours.
    """
    steps, size = len(rain.fields), rain.height.shape[0]
    count(cells, "cells", "cell_rows"), count(reach, "reach", "cell_rows", 0)
    between(count(hours, "hours", "cell_rows"), 1, steps - 1, "hours", "cell_rows")
    now = np.repeat(np.arange(hours - 1, steps - 1), cells)
    row, column = stream(seed, "rain", "cells").integers(0, size, (2, len(now)))
    before = np.arange(1 - hours, 1)[:, None, None]
    down, right = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    at = now[:, None, None, None] + before, row[:, None, None, None] + down, column[:, None, None, None] + right
    values = rain.fields[at[0], :, at[1] % size, at[2] % size]  # (N, hours, side, side, V)
    values = np.moveaxis(values, -1, 1).reshape(len(now), -1).astype(np.float64)
    fell = rain.precipitation
    return CellRows(
        values,
        fell[now + 1, row, column].astype(np.float64),
        fell[now, row, column].astype(np.float64),
        now,
        row,
        column,
    )


def _hour(
    air: np.ndarray,
    pattern: np.ndarray,
    wind: np.ndarray,
    slope: list[np.ndarray],
    lift: float,
    target: float,
    cell: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, float]:
    """Air (4, S, S) an hour on: air, pattern, lift (S, S), mm that fell (S, S), mean kg/m2 that the ground gave."""
    across = wind * SECONDS / cell
    uphill = 0.5 * (wind[0] * slope[0] + wind[1] * slope[1])  # half: the flow dives beneath, and lifts less above
    fell, given = np.zeros_like(pattern), 0.0
    for _ in range(round(3600 / SECONDS)):
        moved = np.concatenate([air, pattern[None]])
        moved = carry(carry(moved, across[0], 2), across[1], 1)
        air, pattern = moved[:4], moved[4]
        rate = uphill + lift * pattern
        temperature, vapour, cloud, drops = air
        temperature = temperature - DRY * rate * SECONDS + (target - temperature) * SECONDS / WARMING
        source = np.maximum(HUMIDITY * saturation(target) - vapour, 0) * SECONDS / MOISTENING
        *air, fallen = microphysics(temperature, vapour + source, cloud, drops, SECONDS)
        air = np.stack(air)
        fell, given = fell + DENSITY * DEPTH * fallen, given + DENSITY * DEPTH * source.mean()
    return air, pattern, rate, fell, given


def _observed(air: np.ndarray, wind: np.ndarray, rate: np.ndarray, fell: np.ndarray, target: float) -> np.ndarray:
    """(V, S, S) the variables, from laws that are simple, consistent with each other, and ours where not named."""
    temperature, vapour, cloud, _ = air
    pressure = np.maximum(vapour / (0.622 + vapour) * PRESSURE, 1.0)
    logarithm = np.log(pressure / 611.2)
    dew = 273.15 + 243.5 * logarithm / (17.67 - logarithm)
    path = DENSITY * DEPTH * cloud
    cover = -np.expm1(-path / 0.1)
    base = PRESSURE / 100 * np.exp(-125 * np.maximum(temperature - dew, 0) / 8500)  # 125 m a K up to saturation
    top = base * np.exp(-(500 + 1500 * cover) / 8500)
    window = (1 - cover) * (target + 5) + cover * (temperature - 0.0065 * (500 + 1500 * cover))
    column = 245 - 8 * np.log(vapour / 0.01) - 6 * cover
    full = np.ones_like(fell)
    humidity = vapour / saturation(temperature)
    return np.stack(
        [wind[0] * full, wind[1] * full, rate, temperature, dew, fell, humidity, 1e3 * vapour, base, top, cover, path,
         window, column]
    )  # fmt: skip


def _water(air: np.ndarray) -> float:
    return float(DENSITY * DEPTH * air[1:].sum(axis=0).mean())
