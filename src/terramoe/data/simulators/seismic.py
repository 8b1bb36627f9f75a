"""Prestack seismics: how P waves reflect at interfaces by angle, and the angle gathers of a layered ground.

Velocities are in km/s, densities in g/cm3, times in s, angles of incidence in degrees. The convolutional model leaves
out multiples, spreading and converted waves: what a gather after processing is taken to be.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.ndimage import convolve1d, gaussian_filter1d
from scipy.signal import fftconvolve, hilbert

from terramoe.data.simulators.limits import between, choice, count, positive
from terramoe.data.worlds.fields import stream
from terramoe.errors import ConfigError, DataError

SHEAR_LINES = {  # Vs = slope * Vp + intercept, km/s
    "mudrock": (1 / 1.16, -1.36 / 1.16),  # Castagna et al. 1985
    "sandstone": (0.804, -0.856),  # Rock physics: the link between rock properties and AVO response, 1993
}


class Elastic(NamedTuple):
    """P velocity, S velocity (km/s) and density (g/cm3), arrays of one shape."""

    vp: np.ndarray
    vs: np.ndarray
    density: np.ndarray


class Scattering(NamedTuple):
    """Displacement amplitudes, complex, for an incident P wave of amplitude 1: reflected P and S, transmitted P, S."""

    reflected_p: np.ndarray
    reflected_s: np.ndarray
    transmitted_p: np.ndarray
    transmitted_s: np.ndarray


def shear_velocity(vp: ArrayLike, rock: str = "mudrock") -> np.ndarray:
    """S velocity (km/s) of wet rock from ``vp``; ConfigError where the line gives none above 0 (1.36 for mudrock).

    Relationships between compressional-wave and shear-wave velocities in clastic silicate rocks, 1985,
    doi:10.1190/1.1441933.
    """
    slope, intercept = choice(rock, SHEAR_LINES, "rock", "shear_velocity")
    return positive(slope * positive(vp, "vp", "shear_velocity") + intercept, "S velocity", f"shear_velocity, {rock}")


def gardner_density(vp: ArrayLike) -> np.ndarray:
    """Density (g/cm3) = 0.31 (Vp in m/s) ** 0.25.

    Formation velocity and density: the diagnostic basics for stratigraphic traps, 1974, doi:10.1190/1.1440465.
    """
    return 0.31 * (1000 * positive(vp, "vp", "gardner_density")) ** 0.25


def elastic_of(vp: ArrayLike, sand: ArrayLike | None = None) -> Elastic:
    """Everything from ``vp``: Vs by the line of mudrock, or of sandstone where ``sand`` (bool, as vp), and Gardner."""
    vp = positive(vp, "vp", "elastic_of")
    vs = shear_velocity(vp)
    if sand is not None:
        vs = np.where(sand, shear_velocity(vp, "sandstone"), vs)
    return Elastic(vp, vs, gardner_density(vp))


def zoeppritz(upper: Elastic, lower: Elastic, angle: ArrayLike) -> Scattering:
    """The exact amplitudes at a plane, welded interface, complex beyond the critical angles; all inputs broadcast.

    Erdbebenwellen VIII B: Über die Reflexion und Durchgang seismischer Wellen durch Unstetigkeitsflächen, 1919, in the
    matrix form of Quantitative Seismology, 1980, chapter 5. The convention is exp(-i omega t): waves that do not travel
    below the interface decay downwards. Raises ConfigError for fluids (Vs = 0) and angles outside [0, 90).
    """
    upper, lower, angle = _interface(upper, lower, angle, "zoeppritz")
    slowness = np.sin(angle) / upper.vp
    sines = [slowness * v + 0j for v in (upper.vp, upper.vs, lower.vp, lower.vs)]
    cosines = [np.sqrt(1 - s * s) for s in sines]  # the root of a negative number is +i: waves past critical decay
    (p1, s1, p2, s2), (cp1, cs1, cp2, cs2) = sines, cosines
    shear1, shear2 = upper.density * upper.vs**2, lower.density * lower.vs**2
    stiff1, stiff2 = upper.density * upper.vp, lower.density * lower.vp
    rows = [
        [-p1, -cs1, p2, cs2],  # displacement along the interface
        [cp1, -s1, cp2, -s2],  # and across it
        [  # traction along it: shear modulus x strain, over that of the incident wave
            2 * p1 * cp1,
            upper.vp / upper.vs * (1 - 2 * s1**2),
            shear2 / shear1 * upper.vp / lower.vp * 2 * p2 * cp2,
            shear2 / shear1 * upper.vp / lower.vs * (1 - 2 * s2**2),
        ],
        [  # and across it
            -(1 - 2 * s1**2),
            upper.vs / upper.vp * 2 * s1 * cs1,
            stiff2 / stiff1 * (1 - 2 * s2**2),
            -lower.density * lower.vs / stiff1 * 2 * s2 * cs2,
        ],
    ]
    matrix = np.stack([np.stack(np.broadcast_arrays(*row), -1) for row in rows], -2)
    incident = np.stack(np.broadcast_arrays(p1, cp1, 2 * p1 * cp1, 1 - 2 * s1**2), -1)
    return Scattering(*np.moveaxis(np.linalg.solve(matrix, incident[..., None])[..., 0], -1, 0))


def aki_richards(upper: Elastic, lower: Elastic, angle: ArrayLike) -> np.ndarray:
    """P-P reflection to first order in the contrasts, real; all inputs broadcast.

    Quantitative Seismology, 1980, equation 5.44:
    R = (1 - 4 p2 Vs2) drho / 2 rho + dVp / (2 cos2(theta) Vp) - 4 p2 Vs2 dVs / Vs with means of both sides; theta is
    the mean of the angles of incidence and transmission, which counts as 90 degrees beyond the critical angle.
    """
    upper, lower, angle = _interface(upper, lower, angle, "aki_richards")
    below = np.arcsin(np.minimum(np.sin(angle) * lower.vp / upper.vp, 1))
    theta = (angle + below) / 2
    vp, vs, density = ((a + b) / 2 for a, b in zip(upper, lower, strict=True))
    dvp, dvs, ddensity = (b - a for a, b in zip(upper, lower, strict=True))
    shear = 4 * (np.sin(theta) * vs / vp) ** 2
    return (1 - shear) * ddensity / (2 * density) + dvp / (2 * np.cos(theta) ** 2 * vp) - shear * dvs / vs


def ricker(times: ArrayLike, frequency: float) -> np.ndarray:
    """The wavelet (1 - 2 a) exp(-a), a = (pi f t)2: value 1 at time 0, mean 0, spectrum at its highest at
    ``frequency``.

    The form and laws of propagation of seismic wavelets, 1953, doi:10.1190/1.1437843. Times and frequency in any pair
    of units that multiply to 1 (s and Hz, ns and GHz).
    """
    phase = (np.pi * positive(frequency, "frequency", "ricker") * np.asarray(times, dtype=float)) ** 2
    return (1 - 2 * phase) * np.exp(-phase)


def gathers(ground: Elastic, angles: ArrayLike, step: float, frequency: float, *, exact: bool = False) -> np.ndarray:
    """(..., A, T) angle gathers of ``ground`` (..., T), which is sampled in two-way time.

    The interface between samples i and i + 1 reflects at i + 1; a Ricker wavelet of ``frequency`` (Hz) is put on each
    reflection. Beyond the critical angle the exact amplitude turns the phase of the wavelet.

    Args:
        angles: (A,) degrees, the same at every interface. step: s. exact: Zoeppritz instead of Aki and Richards.

    Raises:
        ConfigError: a frequency above Nyquist's, or anything that the reflection cannot have. DataError: shapes differ.
    """
    if len({np.shape(part) for part in ground}) != 1 or np.ndim(ground.vp) < 1 or np.shape(ground.vp)[-1] < 2:
        raise DataError("vp, vs and density differ in shape or have one sample", where="gathers", fix="use (..., T)")
    between(frequency, 1e-9, 0.5 / positive(step, "step", "gathers"), "frequency", "gathers")
    angles = between(np.atleast_1d(angles), 0, 89.999, "angles", "gathers")[:, None]
    upper = Elastic(*(np.asarray(part)[..., None, :-1] for part in ground))
    lower = Elastic(*(np.asarray(part)[..., None, 1:] for part in ground))
    reflection = zoeppritz(upper, lower, angles).reflected_p if exact else aki_richards(upper, lower, angles)
    reflection = np.concatenate([np.zeros_like(reflection[..., :1]), reflection], axis=-1)
    half = int(np.ceil(1.5 / frequency / step))  # the wavelet is below 1e-7 there
    wavelet = ricker(np.arange(-half, half + 1) * step, frequency)
    traces = _convolve(reflection.real, wavelet)
    if np.iscomplexobj(reflection) and reflection.imag.any():
        turned = hilbert(np.pad(wavelet, 8 * half)).imag  # its tails are long
        traces = traces + _convolve(reflection.imag, turned)  # plus, as the amplitudes are for exp(-i omega t)
    return traces


def in_time(section: ArrayLike, vp: ArrayLike, spacing: float, step: float, samples: int) -> np.ndarray:
    """A section (Z, X) in depth, resampled to (X, samples) in two-way time t(z) = 2 times the integral of dz / Vp.

    Args:
        vp: (Z, X) km/s, for the travel times. spacing: km between rows. step: s. Below the section its last row goes
            on.
    """
    vp = positive(vp, "vp", "in_time")
    section = np.asarray(section)
    if vp.ndim != 2 or section.shape != vp.shape:
        raise DataError(f"section {section.shape} and vp {vp.shape}", where="in_time", fix="give both as (Z, X)")
    thickness = 2 * positive(spacing, "spacing", "in_time") / vp
    tops = np.cumsum(thickness, axis=0) - thickness
    times = np.arange(count(samples, "samples", "in_time", 2)) * positive(step, "step", "in_time")
    rows = [np.searchsorted(column, times, side="right") - 1 for column in tops.T]  # blocky: no values between layers
    return np.stack([column[row] for column, row in zip(section.T, rows, strict=True)])


def low_frequency(logs: ArrayLike, samples: int = 65) -> np.ndarray:
    """Logs (..., T) smoothed by a Hann window of ``samples``: the initial model that an inversion starts from."""
    window = np.hanning(count(samples, "samples", "low_frequency") + 2)
    return convolve1d(np.asarray(logs, dtype=float), window / window.sum(), axis=-1, mode="nearest")


def layered_section(
    depths: int, columns: int, seed: int, *, layers: int = 40, fastest: float = 4.8
) -> tuple[np.ndarray, np.ndarray]:
    """A simulated ground: P velocity (depths, columns) in km/s and where it is sand (bool, same shape).

    Undulating layers of uneven thickness; velocity rises with depth from 1.7 to ``fastest`` and scatters by 8 %.
    """
    for name, value in (("depths", depths), ("columns", columns), ("layers", layers)):
        count(value, name, "layered_section")
    between(fastest, 1.8, 8.0, "fastest", "layered_section")
    shape, rock = stream(seed, "seismic", "shape"), stream(seed, "seismic", "rock")
    bounds = np.sort(shape.uniform(0, 1, layers - 1))
    dip = gaussian_filter1d(shape.standard_normal(columns + 2), max(columns / 6, 1), mode="wrap")[:columns]
    dip = 0.06 * (dip - dip.mean()) / (dip.std() + 1e-12)
    level = (np.arange(depths)[:, None] + 0.5) / depths + dip * np.linspace(0.3, 1, depths)[:, None]
    layer = np.searchsorted(bounds, level)
    trend = np.linspace(1.7, fastest, layers)
    vp = np.clip(trend * (1 + 0.08 * rock.standard_normal(layers)), 1.6, None)
    return vp[layer], (rock.random(layers) < 0.5)[layer]


def _interface(upper: Elastic, lower: Elastic, angle: ArrayLike, where: str) -> tuple[Elastic, Elastic, np.ndarray]:
    upper, lower = (
        Elastic(*(positive(v, name, where) for v, name in zip(side, Elastic._fields, strict=True)))
        for side in (upper, lower)
    )
    for side in (upper, lower):
        if (side.vs >= side.vp).any():
            raise ConfigError("S waves as fast as P waves", where=where, fix="give vp, vs, density in this order")
    return upper, lower, np.radians(between(angle, 0, 89.999, "angle", where))


def _convolve(reflection: np.ndarray, wavelet: np.ndarray) -> np.ndarray:
    """Same length as the reflections, whatever the length of the wavelet (odd, centred)."""
    shape = (1,) * (reflection.ndim - 1) + (-1,)
    return fftconvolve(reflection, wavelet.reshape(shape), mode="same", axes=-1)
