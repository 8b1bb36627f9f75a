"""Ships under water: the noise that each kind makes, and recordings of it over the paths of a waveguide.

Times are in s, frequencies in Hz, distances in m. Kinds differ in the lines of shaft and blades and in how their
broadband noise is beaten; the figures of SHIPS are ours, of the order that measurements report.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from terramoe.data.simulators.acoustics import Arrivals, Waveguide, arrivals, receive
from terramoe.data.simulators.limits import between, choice, count, positive
from terramoe.data.worlds.fields import stream

SOURCE = 10.0  # depth of a ship's propeller


class Ship(NamedTuple):
    """Range of the shaft rate (Hz), blades (0: no ship), power of the lines over broadband (dB), depth of the beat."""

    shaft: tuple[float, float]
    blades: int
    lines: float
    beat: float


SHIPS = {
    "fishing": Ship((4.0, 8.0), 3, 2.0, 0.3),
    "motorboat": Ship((12.0, 25.0), 3, -4.0, 0.6),
    "passenger": Ship((2.0, 4.0), 5, 5.0, 0.2),
    "cargo": Ship((1.2, 2.2), 4, 10.0, 0.4),
    "background": Ship((1.0, 2.0), 0, 0.0, 0.0),
}


class ShipSamples(NamedTuple):
    """Simulated recordings.

    Attributes:
        series: (N, T) float32 of standard deviation 1. kind: (N,) index into SHIPS. distance, depth: (N,) of the ship
        and the receiver. source: (N,) number of the ship heard: keep all of one on one side of a split.
    """

    series: np.ndarray
    kind: np.ndarray
    distance: np.ndarray
    depth: np.ndarray
    source: np.ndarray


def source_level(frequency: ArrayLike) -> np.ndarray:
    """dB re 1 uPa2/Hz at 1 m of a mean merchant ship, 230 - 10 log f^3.594 + 10 log (1 + (f / 340)2)^0.917.

    An ensemble source spectra model for merchant ship-radiated noise, 2002, doi:10.1121/1.1427355; fitted from 30 to
    1200 Hz, here used beyond.
    """
    f = positive(frequency, "frequency", "source_level")
    return 230 - 35.94 * np.log10(f) + 9.17 * np.log10(1 + (f / 340) ** 2)


def ship_signal(
    kind: str, seconds: float, rate: float, generator: np.random.Generator, *, shaft: float | None = None
) -> np.ndarray:
    """(T,) noise of a ship, of standard deviation 1: lines at multiples of the rates of shaft and blades, and noise of
    the spectrum of ``source_level`` (level below 10 Hz) beaten at the blade rate.

    Args:
        rate: samples a second. shaft: Hz, instead of one drawn from the kind's range.
    """
    ship = choice(kind, SHIPS, "ship", "ship_signal")
    size = positive(seconds, "seconds", "ship_signal") * positive(rate, "rate", "ship_signal")
    size = count(int(np.round(size)), "samples", "ship_signal", 16)
    drawn = generator.uniform(*ship.shaft)
    shaft = drawn if shaft is None else float(positive(shaft, "shaft", "ship_signal"))
    times, frequencies = np.arange(size) / rate, np.fft.rfftfreq(size, 1 / rate)
    level = source_level(np.maximum(frequencies, 10.0))
    shape = 10 ** ((level - level.max()) / 20) * (frequencies > 0)
    broad = np.fft.irfft(np.fft.rfft(generator.standard_normal(size)) * shape, size)
    broad = broad / broad.std() * (1 + ship.beat * np.cos(2 * np.pi * shaft * ship.blades * times))
    if ship.blades == 0:
        return broad / broad.std()
    orders = np.concatenate([np.arange(1, 4), ship.blades * np.arange(1, 13)])
    heights = 10 ** (generator.normal(0, 3, orders.size) / 20) / np.sqrt(np.arange(1, orders.size + 1))
    phases = generator.uniform(0, 2 * np.pi, orders.size)
    heights = heights * (orders * shaft < rate / 2)  # what the rate cannot carry would fold
    tones = heights @ np.cos(2 * np.pi * shaft * orders[:, None] * times + phases[:, None])
    total = broad / broad.std() + tones / (tones.std() + 1e-30) * 10 ** (ship.lines / 20)
    return total / total.std()


def ship_samples(
    samples: int, seed: int, guide: Waveguide, *, seconds: float = 1.0, rate: float = 4000.0, clips: int = 4,
    ratio: float = 15.0, distances: tuple[float, float] = (1e3, 11e3), depths: tuple[float, float] = (100.0, 1100.0),
) -> ShipSamples:  # fmt: skip
    """Recordings of ships 10 m deep by one receiver, distance and depth drawn from the ranges.

    ``clips`` recordings in a row are of one ship at different places; ``ratio`` is signal over white noise, dB. As long
    as the paths of the first three round trips differ, the ship has been heard before a recording starts.

    Raises:
        ConfigError: depths below the bottom, and other impossible values.
    """
    count(samples, "samples", "ship_samples")
    count(clips, "clips", "ship_samples")
    between(ratio, -100, 100, "ratio", "ship_samples")
    between(depths, 0, guide.depth, "depths", "ship_samples")
    between(distances, 1, 1e6, "distances", "ship_samples")
    draw, kinds = stream(seed, "ships", "geometry"), list(SHIPS)
    source = np.arange(samples) // clips
    kind = draw.integers(len(kinds), size=source[-1] + 1)[source]
    distance, depth = draw.uniform(*distances, samples), draw.uniform(*depths, samples)
    size = count(int(np.round(positive(seconds, "seconds", "ship_samples") * rate)), "samples", "ship_samples", 16)
    paths = [arrivals(guide, SOURCE, z, r, orders=3) for z, r in zip(depth, distance, strict=True)]
    series = np.empty((samples, size), dtype=np.float32)
    for ship in range(source[-1] + 1):
        mine = np.flatnonzero(source == ship)
        before = [_spread(paths[i], rate) for i in mine]
        sound = ship_signal(
            kinds[kind[mine[0]]], (max(before) + size * len(mine)) / rate, rate, stream(seed, "ships", "sound", ship)
        )
        for position, i in enumerate(mine):
            stop = max(before) + size * (position + 1)
            heard = receive(sound[stop - size - before[position] : stop], rate, paths[i])[0, -size:]
            noise = stream(seed, "ships", "noise", i).standard_normal(size) * 10 ** (-ratio / 20)
            heard = heard / heard.std() + noise
            series[i] = heard / heard.std()
    return ShipSamples(series, kind, distance, depth, source)


def _spread(paths: Arrivals, rate: float) -> int:
    """Samples between the first and the last arrival."""
    return int(np.ceil((paths.delay.max() - paths.delay.min()) * rate)) + 1
