"""Cloud base height from 57 sensors: a satellite above, five weather stations below, and the laws between them.

Two regimes. In the convective one, air lifted from the ground condenses at 125 m for each kelvin by which the ground
is warmer than its dew point, so the stations know the base. In the stratiform one a layer hangs at any height, whatever
the ground is like, so only its radiation tells: upward to the satellite, from its top, through the water vapour above,
and downward to the ground, from its base. Heights are in km, temperatures in K, vapour in g/m3 and mm.

Infrared radiance is taken as linear in temperature, as in a narrow window around terrestrial temperatures. Scattering,
several layers of cloud and the real profiles of a day are left out.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from terramoe.data.simulators.limits import between, count
from terramoe.data.simulators.weather import vapour_pressure
from terramoe.data.worlds.fields import stream
from terramoe.errors import DataError

LCL = 0.125  # km per K of dew point depression: Espy's rule in the form of Lawrence 2005, doi:10.1175/BAMS-86-2-225
VAPOUR_SCALE = 2.0  # km in which water vapour falls by a factor e
TROPOPAUSE = 12.0  # km; the air above is as warm as there
FREEZING = 273.15
INFRARED = {"ir 10.8": 0.006, "ir 12.0": 0.010, "ir 8.7": 0.015, "wv 7.3": 0.25, "wv 6.2": 1.2}  # 1/mm, round figures
STATIONS, PIXELS = 5, 4
PER_PIXEL = (*INFRARED, "albedo")
PER_STATION = ("temperature", "dew point", "humidity", "pressure", "wind")
SINGLE = ("longwave", "sunshine", "sun height", "view angle", "soil temperature", "visibility", "rain", "snow")
SENSORS = (
    *(f"{name}, pixel {i + 1}" for i in range(PIXELS) for name in PER_PIXEL),
    *(f"{name}, station {i + 1}" for i in range(STATIONS) for name in PER_STATION),
    *SINGLE,
)
LEVELS = 60  # of the integration of what the air above emits


class Skies(NamedTuple):
    """N situations, arrays (N,).

    Attributes:
        base, top: of the cloud, km. convective: bool. surface, dew: temperature and dew point of the air at the
            ground, K. lapse: K/km. optical: depth of the cloud in the infrared. view: zenith angle of the satellite,
            degrees. sun: sine of the sun's height, 0 at night.
    """

    base: np.ndarray
    top: np.ndarray
    convective: np.ndarray
    surface: np.ndarray
    dew: np.ndarray
    lapse: np.ndarray
    optical: np.ndarray
    view: np.ndarray
    sun: np.ndarray


def condensation_level(temperature: ArrayLike, dew_point: ArrayLike) -> np.ndarray:
    """Height (km) at which air of the ground condenses when lifted: 0.125 km per K of depression, not below 0."""
    return LCL * np.maximum(np.asarray(temperature, dtype=float) - np.asarray(dew_point, dtype=float), 0)


def air_temperature(skies: Skies, height: ArrayLike) -> np.ndarray:
    """(N, ...) K at heights (N, ...) in km."""
    height = np.asarray(height, dtype=float)
    extra = (slice(None),) + (None,) * (height.ndim - 1)
    return skies.surface[extra] - skies.lapse[extra] * np.minimum(height, TROPOPAUSE)


def vapour_density(dew_point: ArrayLike) -> np.ndarray:
    """g/m3 of water vapour in air of that dew point (K): e / (R T), R = 0.4615 J/(g K)."""
    dew_point = between(dew_point, 180, 330, "dew point", "vapour_density")
    return 1000 * vapour_pressure(dew_point - FREEZING) / (0.4615 * dew_point)


def vapour_above(skies: Skies, height: ArrayLike) -> np.ndarray:
    """(N, ...) mm of water in the column above heights (N, ...) in km: exponential with VAPOUR_SCALE."""
    height = np.asarray(height, dtype=float)
    extra = (slice(None),) + (None,) * (height.ndim - 1)
    return vapour_density(skies.dew)[extra] * VAPOUR_SCALE * np.exp(-height / VAPOUR_SCALE)


def emissivity(optical: ArrayLike) -> np.ndarray:
    """1 - exp(-depth) of the cloud."""
    return -np.expm1(-between(optical, 0, np.inf, "optical depth", "emissivity"))


def brightness(skies: Skies) -> np.ndarray:
    """(N, 5) K at the satellite in the channels of INFRARED.

    What leaves the ground and the air is absorbed by the vapour above it (Beer-Lambert along the view), and the air
    emits as it absorbs; the cloud, at the temperature of its top, replaces a share ``emissivity`` of what comes from
    below it.
    """
    clear, covered = (_looking_down(skies, floor) for floor in (np.zeros_like(skies.top), skies.top))
    share = emissivity(skies.optical)[:, None]
    return share * covered + (1 - share) * clear


def longwave(skies: Skies) -> np.ndarray:
    """(N,) W/m2 of thermal radiation that the ground receives.

    Clear air: On a derivable formula for long-wave radiation from clear skies, 1975, doi:10.1029/WR011i005p00742. The
    cloud fills what the clear air leaves open, at the temperature of its base.
    """
    hectopascal = 10 * vapour_pressure(skies.dew - FREEZING)
    clear = np.minimum(1.24 * (hectopascal / skies.surface) ** (1 / 7), 1)
    base = air_temperature(skies, skies.base)
    return 5.670374e-8 * (clear * skies.surface**4 + (1 - clear) * emissivity(skies.optical) * base**4)


def sky_states(samples: int, seed: int, *, convective: float = 0.5) -> Skies:
    """Situations: a share ``convective`` with their base at the condensation level (+-100 m), the others with a layer
    between 0.3 and 12 km, low ones more often. Distributions are ours.
    """
    count(samples, "samples", "sky_states")
    between(convective, 0, 1, "convective", "sky_states")
    draw = stream(seed, "cloud base", "states")
    rising = draw.random(samples) < convective
    surface = FREEZING + draw.normal(12, 9, samples)
    depression = draw.gamma(3.0, 3.5, samples).clip(0.5, 30)
    dew = surface - depression
    lifted = condensation_level(surface, dew) + 0.1 * draw.standard_normal(samples)
    layer = 0.3 + 11.7 * draw.beta(1.2, 2.0, samples)
    base = np.where(rising, lifted, layer).clip(0.05, 13)
    thick = np.where(rising, draw.gamma(2.0, 1.0, samples), draw.gamma(2.0, 0.35, samples)).clip(0.1)
    return Skies(
        base=base,
        top=np.minimum(base + thick, 14),
        convective=rising,
        surface=surface,
        dew=dew,
        lapse=draw.normal(6.5, 0.7, samples).clip(4, 9.8),
        optical=np.where(rising, 4, 2) * draw.gamma(2.0, 0.5, samples) + 0.2,
        view=draw.uniform(0, 60, samples),
        sun=np.sin(np.radians(draw.uniform(-60, 60, samples))).clip(0),
    )


def cloud_base_table(
    samples: int, seed: int, *, noise: float = 1.0, missing: float = 0.0, convective: float = 0.5
) -> tuple[np.ndarray, np.ndarray, Skies]:
    """X (N, 57) in the order of SENSORS, the lidar's cloud base y (N,) in km, and the situations.

    Pixels see the same cloud with their own small differences in optical depth and top; stations measure the same air
    with their own offsets; so sensors are strongly correlated. The last three tell nothing of the base.

    Args:
        noise: a factor on all errors of the sensors. missing: chance that a value is NaN.
    """
    between(noise, 0, 100, "noise", "cloud_base_table")
    if missing == 1:
        raise DataError("every value would be missing", where="cloud_base_table", fix="use a share below 1")
    between(missing, 0, 1, "missing", "cloud_base_table")
    skies = sky_states(samples, seed, convective=convective)
    draw = stream(seed, "cloud base", "sensors")
    columns = [*_pixels(skies, draw, noise), *_stations(skies, draw, noise), *_singles(skies, draw, noise)]
    X = np.stack(columns, axis=1)
    X[stream(seed, "cloud base", "missing").random(X.shape) < missing] = np.nan
    return X, skies.base, skies


def _looking_down(skies: Skies, floor: np.ndarray) -> np.ndarray:
    """(N, 5) K above an opaque floor at height ``floor`` (N,), of the temperature of the air there."""
    edge = floor[:, None] + (20 - floor)[:, None] * np.linspace(0, 1, LEVELS + 1) ** 2  # closer where vapour is dense
    depth = vapour_above(skies, edge)[..., None] * np.array(list(INFRARED.values()))
    through = np.exp(-depth / np.cos(np.radians(skies.view))[:, None, None])  # (N, levels + 1, 5) from there to space
    middle = air_temperature(skies, (edge[:, 1:] + edge[:, :-1]) / 2)[..., None]
    emitted = (middle * np.diff(through, axis=1)).sum(axis=1)
    space = air_temperature(skies, edge[:, -1:]) * (1 - through[:, -1])  # the little vapour above the last level
    return air_temperature(skies, floor)[:, None] * through[:, 0] + emitted + space


def _pixels(skies: Skies, draw: np.random.Generator, noise: float) -> list[np.ndarray]:
    size, columns = skies.base.size, []
    for _ in range(PIXELS):
        optical = skies.optical * np.exp(0.15 * draw.standard_normal(size))
        top = np.maximum(skies.top + 0.15 * draw.standard_normal(size), skies.base)
        seen = brightness(skies._replace(optical=optical, top=top)) + noise * 0.5 * draw.standard_normal((size, 5))
        albedo = (0.12 + 0.7 * optical / (optical + 3)) * (skies.sun > 0) + noise * 0.02 * draw.standard_normal(size)
        columns += [*seen.T, albedo]
    return columns


def _stations(skies: Skies, draw: np.random.Generator, noise: float) -> list[np.ndarray]:
    size, columns = skies.base.size, []
    for _ in range(STATIONS):
        air = skies.surface + noise * draw.normal(0, 0.8, size)
        dew = np.minimum(skies.dew + noise * draw.normal(0, 0.8, size), air)
        humidity = vapour_pressure(dew - FREEZING) / vapour_pressure(air - FREEZING)
        columns += [air, dew, humidity + noise * 0.02 * draw.standard_normal(size)]
        columns += [draw.normal(1013, 8, size) + 4 * ~skies.convective, draw.gamma(3, 1.5, size) + skies.convective]
    return columns


def _singles(skies: Skies, draw: np.random.Generator, noise: float) -> list[np.ndarray]:
    size = skies.base.size
    sunshine = 1000 * skies.sun * np.exp(-0.3 * skies.optical) + noise * 10 * draw.standard_normal(size)
    soil = skies.surface + draw.normal(0, 3, size)
    useless = [draw.gamma(2, 10, size), draw.exponential(1, size), draw.random(size)]  # visibility, rain, snow
    return [
        longwave(skies) + noise * 5 * draw.standard_normal(size),
        sunshine,
        skies.sun,
        skies.view,
        soil,
        *useless,
    ]
