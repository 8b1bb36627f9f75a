"""Ground-penetrating radar: traces over buried objects, as B-scans.

Rays in a homogeneous soil: each object sends back the pulse after its two-way time, weakened by spreading, by the loss
of the soil and by the antennas' pattern. Distances are in m, times in ns, frequencies in GHz, conductivity in S/m.
Multiples between objects, dispersion and the near field are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from terramoe.data.simulators.limits import between, positive
from terramoe.data.simulators.seismic import ricker

LIGHT = 0.299792458  # m/ns
VACUUM = 8.8541878128e-12  # F/m, and 4e-7 pi H/m, nearly exactly, for its permeability
REFERENCE = 0.1  # m: spreading is 1 for an object this deep under the antennas


class Soil(NamedTuple):
    """Relative permittivity and conductivity (S/m)."""

    permittivity: float
    conductivity: float


class Target(NamedTuple):
    """A point that reflects: its place along the traverse and its depth (m), and its reflection coefficient, -1 to 1.

    ``delay`` (ns) is for what lies inside or under an object, where waves are of another speed.
    """

    place: float
    depth: float
    reflection: float
    delay: float = 0.0


def wave_speed(permittivity: ArrayLike) -> np.ndarray:
    """m/ns, c / sqrt(permittivity); ConfigError below 1."""
    return LIGHT / np.sqrt(between(permittivity, 1, 100, "permittivity", "wave_speed"))


def attenuation(soil: Soil, frequency: ArrayLike) -> np.ndarray:
    """Loss of amplitude in nepers per metre at ``frequency`` (GHz).

    omega sqrt(mu eps / 2) sqrt(sqrt(1 + tan2) - 1), tan = sigma / (omega eps); sigma / 2 sqrt(mu / eps) where that is
    small: Ground-penetrating radar for high-resolution mapping of soil and rock stratigraphy, 1989,
    doi:10.1111/j.1365-2478.1989.tb02221.x.
    """
    omega = 2e9 * np.pi * positive(frequency, "frequency", "attenuation")
    permittivity = between(soil.permittivity, 1, 100, "permittivity", "attenuation") * VACUUM
    tangent = between(soil.conductivity, 0, 100, "conductivity", "attenuation") / (omega * permittivity)
    root = tangent**2 / (np.sqrt(1 + tangent**2) + 1)  # sqrt(1 + tan2) - 1 without cancellation
    return omega * np.sqrt(4e-7 * np.pi * permittivity / 2) * np.sqrt(root)


def reflection(above: ArrayLike, below: ArrayLike | None) -> np.ndarray:
    """Amplitude reflected upright between two permittivities; -1 for a conductor (``below`` None).

    (sqrt e1 - sqrt e2) / (sqrt e1 + sqrt e2), Fresnel. The sign says what lies below, and depends on the soil above.
    """
    if below is None:
        return np.full(np.shape(above), -1.0)
    first, second = (np.sqrt(between(e, 1, 100, "permittivity", "reflection")) for e in (above, below))
    return (first - second) / (first + second)


def travel_time(
    positions: ArrayLike, place: ArrayLike, depth: ArrayLike, speed: float, separation: float = 0.0
) -> np.ndarray:
    """Two-way time (ns) from one antenna to a point and back to the other, ``separation`` apart around ``positions``.

    With separation 0 a hyperbola, t2 = (2 depth / speed)2 + (2 (x - place) / speed)2. All broadcast.
    """
    speed, depth = positive(speed, "speed", "travel_time"), positive(depth, "depth", "travel_time")
    offset = np.asarray(positions, dtype=float) - place
    half = between(separation, 0, np.inf, "separation", "travel_time") / 2
    return (np.hypot(offset - half, depth) + np.hypot(offset + half, depth)) / speed


def moveout(offsets: ArrayLike, depth: ArrayLike, speed: float) -> np.ndarray:
    """Two-way time (ns) from a flat reflector, over the distance of the antennas: t2 = (2 depth / v)2 + (offset / v)2.

    The time by which a common-midpoint gather gives the speed of the soil.
    """
    return travel_time(0.0, 0.0, depth, speed, 0.0) * np.sqrt(1 + (np.asarray(offsets) / (2 * np.asarray(depth))) ** 2)


def b_scan(
    positions: ArrayLike,
    times: ArrayLike,
    soil: Soil,
    targets: Sequence[Target],
    *,
    frequency: float = 1.2,
    separation: float = 0.0,
    direct: float = 0.0,
) -> np.ndarray:
    """(P, T) traces of ``targets`` at ``positions`` (P,) m and ``times`` (T,) ns, with a Ricker pulse.

    A target's amplitude is its reflection x REFERENCE2 / (r1 r2) x cos1 cos2 x exp(-loss (r1 + r2)): spherical
    spreading both ways, antennas that look down, and the loss at the pulse's frequency. ``direct`` is the amplitude of
    the wave from antenna to antenna through the air, the same in all traces.

    Raises:
        ConfigError: a target above ground or with a reflection beyond 1, and other impossible values.
    """
    positions, times = np.asarray(positions, dtype=float)[:, None], np.asarray(times, dtype=float)
    speed, loss = wave_speed(soil.permittivity), attenuation(soil, frequency)
    scan = direct * np.broadcast_to(ricker(times - separation / LIGHT, frequency), (len(positions), times.size))
    for target in targets:
        between(target.reflection, -1, 1, "reflection", "b_scan")
        time = travel_time(positions, target.place, target.depth, speed, separation)
        legs = [np.hypot(positions - target.place + s * separation / 2, target.depth) for s in (-1, 1)]
        spread = REFERENCE**2 / (legs[0] * legs[1]) * target.depth**2 / (legs[0] * legs[1])
        amplitude = target.reflection * spread * np.exp(-loss * (legs[0] + legs[1]))
        scan = scan + amplitude * ricker(times - time - target.delay, frequency)
    return scan


def clutter(positions: ArrayLike, density: float, generator: np.random.Generator) -> list[Target]:
    """Small scatterers, ``density`` per m along the traverse and its surroundings, 2 to 40 cm deep, of both signs."""
    positions = np.asarray(positions, dtype=float)
    low, high = positions.min() - 0.3, positions.max() + 0.3
    number = generator.poisson(between(density, 0, 1000, "density", "clutter") * (high - low))
    values = zip(
        generator.uniform(low, high, number),
        generator.uniform(0.02, 0.4, number),
        np.clip(0.03 * generator.standard_normal(number), -1, 1),
        strict=True,
    )
    return [Target(*map(float, value)) for value in values]
