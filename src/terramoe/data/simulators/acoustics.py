"""Shallow-water acoustics: the paths of sound between sea surface and bottom, and what receivers hear over them.

A layer of water of one depth and speed above a fluid bottom. Depths are down from the surface, distances in m, times in
s, frequencies in Hz; pressure is relative to that at 1 m from the source. Refraction, shear in the bottom and roughness
are left out. The convention is exp(-i omega t).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.fft import next_fast_len

from terramoe.data.simulators.limits import between, count, positive
from terramoe.errors import DataError

NEPER = np.log(10) / 20  # of a decibel


@dataclass(frozen=True)
class Waveguide:
    """Water over a bottom.

    Attributes:
        depth: of the water, m. speed: of sound in it, m/s. bottom_speed: m/s. bottom_density: over that of the water.
        bottom_loss: of sound in the bottom, dB per wavelength.
    """

    depth: float = 100.0
    speed: float = 1500.0
    bottom_speed: float = 1650.0
    bottom_density: float = 1.8
    bottom_loss: float = 0.5

    def __post_init__(self) -> None:
        for name in ("depth", "speed", "bottom_speed", "bottom_density"):
            positive(getattr(self, name), name, "Waveguide")
        between(self.bottom_loss, 0, 50, "bottom_loss", "Waveguide")


class Arrivals(NamedTuple):
    """Paths to R receivers, P each in the order direct, bottom, surface, surface and bottom, and so on.

    Attributes:
        length: (R, P) m. delay: (R, P) s. amplitude: (R, P) complex, reflections over length. surface, bottom: (P,)
            bounces.
    """

    length: np.ndarray
    delay: np.ndarray
    amplitude: np.ndarray
    surface: np.ndarray
    bottom: np.ndarray


def bottom_reflection(sine: ArrayLike, guide: Waveguide) -> np.ndarray:
    """Complex amplitude reflected by the bottom, over the sine of the grazing angle: Rayleigh's coefficient.

    Computational Ocean Acoustics, 2011, doi:10.1007/978-1-4419-8678-8, section 1.6. Total below the critical angle
    arccos(speed / bottom_speed) if the bottom is without loss.
    """
    sine = between(sine, 0, 1, "sine of the grazing angle", "bottom_reflection")
    speed = guide.bottom_speed / (1 + 1j * guide.bottom_loss / (40 * np.pi * np.log10(np.e)))  # dB per wavelength
    below = np.sqrt(1 - (speed / guide.speed) ** 2 * (1 - sine**2) + 0j)  # loss makes it the root that decays downwards
    heavy = guide.bottom_density * speed * sine
    return (heavy - guide.speed * below) / (heavy + guide.speed * below)


def arrivals(guide: Waveguide, source: float, receivers: ArrayLike, distance: float, *, orders: int = 8) -> Arrivals:
    """All paths with up to ``orders`` extra round trips between surface and bottom, 4 (orders + 1) each, by images.

    Computational Ocean Acoustics, 2011, section 2.4: images at heights 2 D m - zs + z, 2 D (m + 1) - zs - z, 2 D m + zs
    + z and 2 D (m + 1) + zs - z; the surface reflects -1, the bottom by angle. Exact for bottoms that reflect all
    angles alike, else plane-wave reflection of spherical waves: good for sources and receivers some wavelengths off the
    bottom.

    Args:
        source: depth. receivers: (R,) depths. distance: horizontal, above 0 unless source and receiver differ in depth.

    Raises:
        ConfigError: depths outside the water, and other impossible values.
    """
    count(orders, "orders", "arrivals", 0)
    source = between(source, 0, guide.depth, "source depth", "arrivals")
    z = between(np.atleast_1d(receivers), 0, guide.depth, "receiver depth", "arrivals")[:, None]
    distance = between(distance, 0, np.inf, "distance", "arrivals")
    full = 2 * guide.depth
    trips = full * np.arange(orders + 1)
    heights = [trips - source + z, trips + full - source - z, trips + source + z, trips + full + source - z]
    heights = np.abs(np.stack(heights, axis=-1)).reshape(len(z), -1)
    length = positive(np.hypot(heights, distance), "distance from the source", "arrivals")
    order = np.repeat(np.arange(orders + 1), 4)
    surface, bottom = order + np.tile([0, 0, 1, 1], orders + 1), order + np.tile([0, 1, 0, 1], orders + 1)
    amplitude = (-1.0) ** surface * bottom_reflection(heights / length, guide) ** bottom / length
    return Arrivals(length, length / guide.speed, amplitude, surface, bottom)


def sea_absorption(frequency: ArrayLike) -> np.ndarray:
    """dB per km: Analytic description of the low-frequency attenuation coefficient, 1967, doi:10.1121/1.1910566, in the
    form of Computational Ocean Acoustics, 2011, equation 1.47.
    """
    f2 = (between(frequency, 0, 1e6, "frequency", "sea_absorption") / 1000) ** 2
    return 3.3e-3 + 0.11 * f2 / (1 + f2) + 44 * f2 / (4100 + f2) + 3e-4 * f2


def pressure(paths: Arrivals, frequencies: ArrayLike, *, absorption: float | None = None) -> np.ndarray:
    """(R, F) complex pressure at the receivers: the sum over paths of amplitude exp(2 pi i f delay) and absorption.

    Args:
        frequencies: (F,) Hz. absorption: dB per km at all of them instead of that of the sea.
    """
    frequencies = between(np.atleast_1d(frequencies), 0, 1e6, "frequency", "pressure")
    loss = sea_absorption(frequencies) if absorption is None else between(absorption, 0, 1e6, "absorption", "pressure")
    exponent = paths.delay[..., None] * (2j * np.pi * frequencies) - paths.length[..., None] * loss * NEPER / 1000
    return np.einsum("rp,rpf->rf", paths.amplitude, np.exp(exponent))


def snapshots(field: ArrayLike, samples: int, ratio: float, generator: np.random.Generator) -> np.ndarray:
    """(samples, R) complex snapshots of an array: ``field`` (R,) times a random complex amplitude, plus white noise.

    ``ratio``: signal over noise, dB, mean over receivers.
    """
    field = np.asarray(field)
    shape = (count(samples, "samples", "snapshots"), field.size)
    between(ratio, -200, 200, "ratio", "snapshots")
    level = np.sqrt((np.abs(field) ** 2).mean() * 10 ** (-ratio / 10))
    amplitude = _complex_normal((shape[0], 1), generator)
    return amplitude * field + level * _complex_normal(shape, generator)


def receive(signal: ArrayLike, rate: float, paths: Arrivals) -> np.ndarray:
    """(R, T) series of what the receivers hear of ``signal`` (T,), sampled at ``rate`` Hz; time 0 is the first arrival.

    Nothing is heard from before the signal's start: leave out as much of the result as the delays differ. A bottom's
    complex amplitude turns the phase of all frequencies alike; delays need not be whole samples.
    """
    signal, rate = np.asarray(signal, dtype=float), positive(rate, "rate", "receive")
    if signal.ndim != 1 or signal.size < 2 or not np.isfinite(signal).all():
        raise DataError(f"signal {signal.shape}", where="receive", fix="give a finite series (T,)")
    delay = paths.delay - paths.delay.min()
    amplitude = np.where(delay * rate < signal.size, paths.amplitude, 0)  # later paths are cut, not wrapped around
    length = next_fast_len(signal.size + min(int(np.ceil(delay.max() * rate)) + 1, signal.size), real=True)
    frequencies = np.fft.rfftfreq(length, 1 / rate)
    turn, loss = -2j * np.pi * frequencies, sea_absorption(frequencies) * NEPER / 1000  # NumPy: exp(+i omega t)
    response = sum(
        a.conj()[:, None] * np.exp(d[:, None] * turn - r[:, None] * loss)  # path by path: memory stays small
        for a, d, r in zip(amplitude.T, delay.T, paths.length.T, strict=True)
    )
    return np.fft.irfft(np.fft.rfft(signal, length) * response, length, axis=-1)[:, : signal.size]


def _complex_normal(shape: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
    return (generator.standard_normal(shape) + 1j * generator.standard_normal(shape)) / np.sqrt(2)
