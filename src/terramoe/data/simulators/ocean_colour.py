"""Ocean colour: remote-sensing reflectance of deep water from what absorbs and scatters light in it.

Absorption is that of water, phytoplankton and coloured dissolved organic matter (CDOM, with detritus), backscattering
that of water and particles; both add up. Absorption and backscattering are in 1/m, reflectance in 1/sr, wavelengths in
nm. Raman scattering, fluorescence, the bottom and the angles of sun and view are left out.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from terramoe.data.simulators.limits import between, count, positive
from terramoe.data.worlds.fields import stream
from terramoe.errors import DataError

GORDON = 0.0895, 0.1247  # below the surface r = (g0 + g1 u) u
CROSSING = 0.52, 1.7  # above it R = 0.52 r / (1 - 1.7 r)
# Absorption spectrum (380-700 nm) of pure water. II. Integrating cavity measurements, 1997, doi:10.1364/AO.36.008710:
# 1/m, from 400 nm by 10 nm
PURE_WATER = (
    0.00663, 0.00473, 0.00454, 0.00495, 0.00635, 0.00922, 0.00979, 0.0106, 0.0127, 0.0150, 0.0204, 0.0325, 0.0409,
    0.0434, 0.0474, 0.0565, 0.0619, 0.0695, 0.0896, 0.1351, 0.2224, 0.2644, 0.2755, 0.2916, 0.3108, 0.340, 0.410,
    0.439, 0.465, 0.516, 0.624,
)  # fmt: skip
WATER_TYPES = {  # our stand-ins for three kinds of water: medians of chlorophyll (mg/m3), CDOM at 440 nm, bbp at 550 nm
    "ocean": (0.4, 0.02, 0.002),
    "green coast": (6.0, 0.25, 0.010),
    "turbid": (10.0, 0.90, 0.060),
}


class WaterSamples(NamedTuple):
    """Simulated stations: reflectance and what made it.

    Attributes:
        reflectance: (N, B) 1/sr, noisy. phytoplankton: (N, B) absorption, 1/m: the target. chlorophyll: (N,) mg/m3.
        water: (N,) index into WATER_TYPES. species: (N,) the spectrum with the largest share.
    """

    reflectance: np.ndarray
    phytoplankton: np.ndarray
    chlorophyll: np.ndarray
    water: np.ndarray
    species: np.ndarray


class Cultures(NamedTuple):
    """Measured absorption of cultures: wavelengths (B,), spectra (N, B) in 1/m, chlorophyll (N,) in mg/m3, and the
    species and experiment of each as text.
    """

    nanometres: np.ndarray
    absorption: np.ndarray
    chlorophyll: np.ndarray
    species: tuple[str, ...]
    experiment: tuple[str, ...]


def water_absorption(nanometres: ArrayLike) -> np.ndarray:
    """Of pure water, 400 to 700 nm; ConfigError outside, where it was not measured with this accuracy."""
    waves = between(nanometres, 400, 700, "wavelength", "water_absorption")
    return np.interp(waves, 400 + 10 * np.arange(len(PURE_WATER)), PURE_WATER)


def water_backscattering(nanometres: ArrayLike) -> np.ndarray:
    """Half of the scattering of pure sea water, 0.00288 (wavelength / 500) ** -4.32.

    Optical properties of pure water and pure sea water, 1974; as in Light and Water, 1994, section 3.8.
    """
    return 0.00144 * (positive(nanometres, "wavelength", "water_backscattering") / 500) ** -4.32


def cdom_absorption(nanometres: ArrayLike, at_440: ArrayLike, slope: ArrayLike = 0.015) -> np.ndarray:
    """at_440 exp(-slope (wavelength - 440)); slope in 1/nm; all broadcast.

    Absorption by dissolved organic matter of the sea (yellow substance) in the UV and visible domains, 1981,
    doi:10.4319/lo.1981.26.1.0043.
    """
    at_440 = between(at_440, 0, 100, "CDOM at 440 nm", "cdom_absorption")
    return at_440 * np.exp(-positive(slope, "slope", "cdom_absorption") * (np.asarray(nanometres, dtype=float) - 440))


def particle_backscattering(nanometres: ArrayLike, at_550: ArrayLike, exponent: ArrayLike = 1.0) -> np.ndarray:
    """at_550 (550 / wavelength) ** exponent; all broadcast."""
    at_550 = between(at_550, 0, 100, "backscattering at 550 nm", "particle_backscattering")
    return at_550 * (550 / positive(nanometres, "wavelength", "particle_backscattering")) ** np.asarray(exponent)


def reflectance(absorption: ArrayLike, backscattering: ArrayLike) -> np.ndarray:
    """Remote-sensing reflectance above the surface (1/sr) from u = bb / (a + bb); both broadcast.

    Below the surface: A semianalytic radiance model of ocean color, 1988, doi:10.1029/JD093iD09p10909, with the
    coefficients and the crossing of the surface of Deriving inherent optical properties from water color: a multiband
    quasi-analytical algorithm for optically deep waters, 2002, doi:10.1364/AO.41.005755.
    """
    absorption = positive(absorption, "absorption", "reflectance")
    backscattering = between(backscattering, 0, np.inf, "backscattering", "reflectance")
    u = backscattering / (absorption + backscattering)
    below = (GORDON[0] + GORDON[1] * u) * u
    return CROSSING[0] * below / (1 - CROSSING[1] * below)


def backscattering_share(above: ArrayLike) -> np.ndarray:
    """u = bb / (a + bb) from reflectance above the surface (1/sr): the inverse of ``reflectance``."""
    above = between(above, 0, reflectance(1e-9, 1e9), "reflectance", "backscattering_share")
    below = above / (CROSSING[0] + CROSSING[1] * above)
    return (-GORDON[0] + np.sqrt(GORDON[0] ** 2 + 4 * GORDON[1] * below)) / (2 * GORDON[1])


def water_samples(
    samples: int, nanometres: ArrayLike, spectra: ArrayLike, seed: int, *, noise: float = 0.02
) -> WaterSamples:
    """Stations of three kinds of water with mixed phytoplankton.

    Absorption of phytoplankton is a mixture of the shapes, of 0.045 chlorophyll ** 0.68 at its highest; chlorophyll,
    CDOM and particles scatter log-normally around the medians of WATER_TYPES (0.5 in the logarithm).

    Args:
        nanometres: (B,) bands, 400 to 700. spectra: (K, B) shapes of absorption, at least 0, in any unit.
        noise: of the reflectance, relative.

    Raises:
        DataError: spectra that do not fit the bands, or one without any absorption. ConfigError: other impossible
            input.
    """
    count(samples, "samples", "water_samples")
    nanometres = between(np.atleast_1d(nanometres), 400, 700, "wavelength", "water_samples")
    shapes = between(spectra, 0, np.inf, "spectra", "water_samples")
    if shapes.ndim != 2 or shapes.shape[1] != nanometres.size or not shapes.any(axis=1).all():
        raise DataError(f"spectra {shapes.shape}", where="water_samples", fix=f"give (K, {nanometres.size}), none 0")
    between(noise, 0, 1, "noise", "water_samples")
    draw, error = stream(seed, "ocean_colour", "water"), stream(seed, "ocean_colour", "noise")
    water = draw.integers(len(WATER_TYPES), size=samples)
    medians = np.array(list(WATER_TYPES.values()))[water]
    chlorophyll, cdom, particles = (medians * np.exp(0.5 * draw.standard_normal(medians.shape))).T
    share = draw.dirichlet(np.full(len(shapes), 0.5), samples)
    mixed = share @ (shapes / shapes.max(axis=1, keepdims=True))
    phytoplankton = (0.045 * chlorophyll**0.68)[:, None] * mixed / mixed.max(axis=1, keepdims=True)
    slope, exponent = draw.uniform(0.011, 0.019, (samples, 1)), draw.uniform(0.3, 1.8, (samples, 1))
    absorption = water_absorption(nanometres) + phytoplankton + cdom_absorption(nanometres, cdom[:, None], slope)
    scattering = water_backscattering(nanometres) + particle_backscattering(nanometres, particles[:, None], exponent)
    clean = reflectance(absorption, scattering)
    noisy = clean * np.exp(noise * error.standard_normal(clean.shape))  # stays above 0
    return WaterSamples(noisy, phytoplankton, chlorophyll, water, share.argmax(axis=1))


def stand_in_spectra(nanometres: ArrayLike) -> np.ndarray:
    """(3, B) shapes for where no measured spectra are at hand, of maximum about 1: diatom-, cyanobacteria-, pico-like.

    Our own sums of Gaussians at bands of chlorophyll a, accessory chlorophylls, carotenoids and phycobilins, after
    Effect of pigment composition on absorption properties of phytoplankton, 1991, doi:10.3354/meps073011. Not
    measurements.
    """
    waves = np.asarray(nanometres, dtype=float)[:, None]
    bands = np.array([[435, 25], [465, 22], [490, 24], [545, 20], [625, 18], [675, 12]])  # centre, standard deviation
    heights = np.array(
        [[0.95, 0.5, 0.45, 0.15, 0.12, 0.5], [0.9, 0.25, 0.5, 0.5, 0.35, 0.35], [1.0, 0.6, 0.25, 0.04, 0.1, 0.42]]
    )
    return heights @ np.exp(-0.5 * ((waves - bands[:, 0]) / bands[:, 1]) ** 2).T


def read_cultures(path: str | Path) -> Cultures:
    """Spectra of a table in long form with the columns exp, phyto, bottle, tp, wl, ap and chl_line_height.

    Each spectrum loses its mean beyond 730 nm, where pigments do not absorb, and is 0 where that leaves less.

    Raises:
        DataError: no such file, a column missing, or spectra of unlike wavelengths.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        groups: dict[tuple[str, ...], list[tuple[float, float, float]]] = {}
        for row in rows:
            key = tuple(row[name] for name in ("exp", "phyto", "bottle", "tp", "datetime"))
            groups.setdefault(key, []).append(tuple(float(row[n]) for n in ("wl", "ap", "chl_line_height")))
        table = np.array([sorted(group) for group in groups.values()])  # (N, B, 3)
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"no table of spectra: {error}", where=path, fix="give the processed long-form CSV") from error
    if table.ndim != 3 or not np.isfinite(table).all() or (table[:, :, 0] != table[0, :, 0]).any():
        raise DataError("spectra of unlike wavelengths", where=path, fix="give one table of one instrument")
    nanometres, spectra = table[0, :, 0], table[:, :, 1]
    if (beyond := nanometres > 730).any():
        spectra = spectra - spectra[:, beyond].mean(axis=1, keepdims=True)
    keys = list(groups)
    return Cultures(
        nanometres, np.maximum(spectra, 0), table[:, 0, 2], tuple(k[1] for k in keys), tuple(k[0] for k in keys)
    )
