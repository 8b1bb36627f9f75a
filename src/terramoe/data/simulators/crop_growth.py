"""Crop growth by light-use efficiency: what light, warmth and water make of leaves, biomass and yield.

Day by day: biomass grows by efficiency x intercepted light x temperature scalar x water scalar. Biomass and yield are
dry matter in g/m2 (1 g/m2 is 10 kg/ha), light in MJ/m2 a day, water in mm, temperature in degrees Celsius. Nutrients,
pests and competition are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from terramoe.data.simulators.limits import between, count, positive
from terramoe.data.simulators.weather import Weather, reference_evaporation
from terramoe.data.worlds.fields import stream
from terramoe.errors import ConfigError, DataError

PAR_SHARE = 0.48  # of the sun's energy that plants can use
SPARED = 0.5  # share of the root zone's water that a crop takes without stress: FAO paper 56, 1998, table 22
BARE_NDVI, DENSE_NDVI = 0.15, 0.92
COVARIATES = ("ndvi", "temperature", "precipitation", "humidity", "radiation")


@dataclass(frozen=True)
class Crop:
    """One kind of crop; the defaults are round figures for winter wheat.

    Attributes:
        efficiency: g of biomass per MJ of intercepted light. extinction: of light in leaves.
        coldest, best, hottest: temperatures of no, full and no growth. base, ripe: degree days over ``base`` to
            ripeness.
        specific_area: m2 of leaf per g. harvest_index: share of the biomass that is yield, without heat at flowering.
        heat: highest temperature at flowering beyond which each K costs ``heat_loss`` of the day's share.
        root_zone: mm of water that the roots reach when it is full.
    """

    efficiency: float = 2.8
    extinction: float = 0.55
    coldest: float = 0.0
    best: float = 19.0
    hottest: float = 35.0
    base: float = 0.0
    ripe: float = 2100.0
    specific_area: float = 0.022
    harvest_index: float = 0.45
    heat: float = 31.0
    heat_loss: float = 0.12
    root_zone: float = 140.0

    def __post_init__(self) -> None:
        positive_fields = ("efficiency", "extinction", "ripe", "specific_area", "root_zone")
        for name in positive_fields:
            positive(getattr(self, name), name, "Crop")
        between([self.harvest_index, self.heat_loss], 0, 1, "harvest_index or heat_loss", "Crop")
        if not self.coldest < self.best < self.hottest:
            raise ConfigError("temperatures of growth out of order", where="Crop", fix="coldest < best < hottest")


class Growth(NamedTuple):
    """(S, D) over S places and D days, at each day's end unless said.

    Attributes:
        stage: 0 sown to 1 ripe. lai: m2 of leaf per m2. light: intercepted share during the day. biomass: g/m2.
        warmth, moisture: scalars of the day, 0 to 1. water: in the root zone, mm. evaporation, drainage, irrigation:
            mm.
        harvest: (S,) yield, g/m2.
    """

    stage: np.ndarray
    lai: np.ndarray
    light: np.ndarray
    biomass: np.ndarray
    warmth: np.ndarray
    moisture: np.ndarray
    water: np.ndarray
    evaporation: np.ndarray
    drainage: np.ndarray
    irrigation: np.ndarray
    harvest: np.ndarray


def intercepted_share(lai: ArrayLike, extinction: float = 0.55) -> np.ndarray:
    """1 - exp(-extinction x leaf area).

    On the factor light in plant communities and its importance for matter production, 1953, doi:10.1093/aob/mci052.
    """
    return -np.expm1(-extinction * between(lai, 0, np.inf, "leaf area", "intercepted_share"))


def temperature_scalar(temperature: ArrayLike, coldest: float, best: float, hottest: float) -> np.ndarray:
    """1 at ``best``, 0 at and beyond ``coldest`` and ``hottest``.

    (T - Tmin)(T - Tmax) / ((T - Tmin)(T - Tmax) - (T - Topt)2): Modeling gross primary production of temperate
    deciduous broadleaf forest using satellite images and climate data, 2004, doi:10.1016/j.rse.2004.03.010.
    """
    if not coldest < best < hottest:
        raise ConfigError("temperatures out of order", where="temperature_scalar", fix="coldest < best < hottest")
    inside = np.clip(temperature, coldest, hottest)
    product = (inside - coldest) * (inside - hottest)
    return product / (product - (inside - best) ** 2)


def water_scalar(water: ArrayLike, root_zone: float) -> np.ndarray:
    """1 while the zone has lost at most SPARED of its water, then falling evenly to 0: FAO paper 56, equation 84."""
    return np.clip(np.asarray(water) / root_zone / (1 - SPARED), 0, 1)


def ndvi_of(lai: ArrayLike, extinction: float = 0.6) -> np.ndarray:
    """Vegetation index over leaf area, from bare soil to a dense canopy: exponential, saturating.

    Potentials and limits of vegetation indices for LAI and APAR assessment, 1991, doi:10.1016/0034-4257(91)90009-U.
    """
    return DENSE_NDVI + (BARE_NDVI - DENSE_NDVI) * np.exp(-extinction * between(lai, 0, np.inf, "leaf area", "ndvi_of"))


def grow(weather: Weather, crop: Crop | None = None, *, irrigated: ArrayLike = False) -> Growth:
    """One season from sowing on the first day, until ripe or the weather ends.

    Climate and the efficiency of crop production in Britain, 1977, doi:10.1098/rstb.1977.0140. Leaves take a share of
    the growth that falls to 0 at 55 % of the way to ripeness, and die after 65 % (our completion). Evaporation is
    reference x (0.25 + 0.9 intercepted share) x water scalar; what exceeds the root zone drains.

    Args:
        irrigated: (S,) bool: the root zone is filled up whenever the crop would come under stress.
    """
    crop = crop or Crop()
    if len({np.shape(part) for part in weather[:5]}) != 1 or np.ndim(weather.low) != 2 or weather.low.size == 0:
        raise DataError("the fields of the weather differ in shape", where="grow", fix="give (S, D) each")
    if (weather.high < weather.low).any() or (weather.rain < 0).any() or (weather.radiation < 0).any():
        raise DataError("weather with negative rain, light or range of temperature", where="grow", fix="check it")
    places, days = weather.low.shape
    irrigated = np.broadcast_to(np.asarray(irrigated, dtype=bool), (places,))
    mean = (weather.low + weather.high) / 2
    sums = np.cumsum(np.maximum(mean - crop.base, 0), axis=1)
    stage = np.minimum(sums / crop.ripe, 1)
    warmth = temperature_scalar(mean, crop.coldest, crop.best, crop.hottest)
    demand = reference_evaporation(weather)
    record = {name: np.zeros((places, days)) for name in Growth._fields[:-1]}
    lai, biomass, water = (np.full(places, value) for value in (0.1, 0.1 / crop.specific_area, 0.7 * crop.root_zone))
    for t in range(days):
        alive = stage[:, t] < 1
        water = water + weather.rain[:, t]
        short = np.where(irrigated & alive & (water < (1 - SPARED) * crop.root_zone), crop.root_zone - water, 0)
        drained = np.maximum(water + short - crop.root_zone, 0)
        water = water + short - drained
        moisture, light = water_scalar(water, crop.root_zone), intercepted_share(lai, crop.extinction)
        gain = crop.efficiency * PAR_SHARE * weather.radiation[:, t] * light * warmth[:, t] * moisture * alive
        used = np.minimum(demand[:, t] * (0.25 + 0.9 * light) * moisture, water)
        water, biomass = water - used, biomass + gain
        leaves = 0.6 * np.clip(1 - stage[:, t] / 0.55, 0, 1)
        dying = 0.06 * np.clip((stage[:, t] - 0.65) / 0.35, 0, 1) + 0.5 * ~alive
        lai = (lai + crop.specific_area * leaves * gain) * (1 - dying)
        today = (stage[:, t], lai, light, biomass, warmth[:, t], moisture, water, used, drained, short)
        for name, value in zip(record, today, strict=True):
            record[name][:, t] = value
    return Growth(*record.values(), harvest=biomass * harvest_index(weather, stage, crop))


def harvest_index(weather: Weather, stage: np.ndarray, crop: Crop) -> np.ndarray:
    """(S,) share of the biomass that is yield: 0 if flowering (stage 0.5 to 0.6) was not reached, less where it was
    hot.

    Each day of flowering costs heat_loss per K beyond ``heat``, up to all of it; the mean over these days counts (our
    completion). Unripe crops have it in proportion to the way from flowering to ripeness.
    """
    flowering = (stage >= 0.5) & (stage < 0.6)
    lost = np.clip(crop.heat_loss * np.maximum(weather.high - crop.heat, 0), 0, 1)
    spared = 1 - (lost * flowering).sum(axis=1) / np.maximum(flowering.sum(axis=1), 1)
    return crop.harvest_index * spared * np.clip((stage[:, -1] - 0.5) / 0.5, 0, 1)


def covariates(
    weather: Weather, growth: Growth, seed: int, *, step: int = 8, noise: float = 0.03, cloudy: float = 0.3
) -> np.ndarray:
    """(S, D // step, 5) what a yield model sees, in the order of COVARIATES, over spans of ``step`` days.

    NDVI is that of the span's last day with ``noise``, and NaN where clouds hid it (a share ``cloudy``); temperature,
    humidity and radiation are means, precipitation is a sum.
    """
    days = weather.rain.shape[1] // count(step, "step", "covariates") * step
    if days == 0:
        raise ConfigError(f"a step of {step} days", where="covariates", fix="use one shorter than the season")
    between([noise, cloudy], 0, 1, "noise or cloudy", "covariates")

    def spans(values: np.ndarray) -> np.ndarray:
        return values[:, :days].reshape(len(values), -1, step)

    ndvi = spans(ndvi_of(growth.lai))[..., -1]
    ndvi = np.clip(ndvi + noise * stream(seed, "crop", "ndvi").standard_normal(ndvi.shape), -1, 1)
    ndvi[stream(seed, "crop", "clouds").random(ndvi.shape) < cloudy] = np.nan
    temperature = spans((weather.low + weather.high) / 2).mean(axis=-1)
    others = (spans(values).mean(axis=-1) for values in (weather.humidity, weather.radiation))
    return np.stack([ndvi, temperature, spans(weather.rain).sum(axis=-1), *others], axis=-1)
