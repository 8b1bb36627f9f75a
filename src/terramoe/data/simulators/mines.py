"""Mines under a ground-penetrating radar: alarms over mines and over what is none, and features along the traverse.

Distances are in m, times in ns. What lies in the ground and how high it is are round figures of ours.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from terramoe.data.simulators.ground_radar import Soil, Target, b_scan, clutter, reflection, wave_speed
from terramoe.data.simulators.limits import between, count
from terramoe.data.worlds.fields import stream
from terramoe.errors import DataError

SOILS = {"dry sand": Soil(4.0, 0.001), "wet clay": Soil(12.0, 0.02)}
# permittivity (None: a conductor), height in m, whether it is a mine
OBJECTS = {
    "metal mine": (None, 0.08, True),
    "plastic mine": (2.8, 0.06, True),
    "rock": (7.0, 0.08, False),
    "void": (1.0, 0.05, False),
    "root": (18.0, 0.02, False),
}


class MineAlarms(NamedTuple):
    """Simulated alarms: B-scans (N, P, T), 1 for a mine else 0 (N,), index into SOILS (N,), object's name index (N,),
    depths (N,) m, with the positions (P,) m and times (T,) ns of the scans.
    """

    scans: np.ndarray
    mine: np.ndarray
    soil: np.ndarray
    kind: np.ndarray
    depth: np.ndarray
    positions: np.ndarray
    times: np.ndarray


def mine_alarms(samples: int, seed: int, *, positions: int = 15, noise: float = 0.01) -> MineAlarms:
    """Alarms over mines and over rocks, voids and roots, half and half, in dry sand and in wet clay.

    Objects lie 3 to 12 cm deep near the middle and reflect at their top and (but for conductors) their base, whose
    polarity is opposite; what is no mine is uneven: three tops within 6 cm. Traverse 70 cm, pulse of 1.2 GHz.
    """
    count(samples, "samples", "mine_alarms")
    count(positions, "positions", "mine_alarms", 3)
    between(noise, 0, 10, "noise", "mine_alarms")
    draw = stream(seed, "ground_radar", "alarms")
    x, t = np.linspace(-0.35, 0.35, positions), np.arange(0, 10, 0.05)
    soils, names = list(SOILS.values()), list(OBJECTS)
    mine, soil = draw.integers(2, size=samples), draw.integers(len(soils), size=samples)
    kind = np.where(mine == 1, draw.integers(2, size=samples), draw.integers(2, len(names), size=samples))
    depth = draw.uniform(0.03, 0.12, samples)
    scans = np.empty((samples, positions, t.size))
    for i in range(samples):
        ground = Soil(*(value * draw.uniform(0.85, 1.15) for value in soils[soil[i]]))
        targets = _object(ground, names[kind[i]], depth[i], draw) + clutter(x, 20.0, draw)
        scans[i] = b_scan(x, t, ground, targets, separation=0.06, direct=0.5)
    scans += noise * stream(seed, "ground_radar", "noise").standard_normal(scans.shape)
    return MineAlarms(scans, mine, soil, kind, depth, x, t)


def edge_features(scans: ArrayLike, lags: int = 20) -> np.ndarray:
    """(..., P, T) -> (..., P, 4) sequences along the traverse: energies of echoes, changes, rising and falling edges.

    Of each scan less its mean trace: the energy of a trace and of its differences to both neighbours; then how well
    the next trace is the same 1 to ``lags`` samples earlier (left of an apex) and later (right of it), as root mean
    squares of correlations: let ``lags`` reach the time by which limbs move a step. Correlations find slopes of more
    than a pulse a step, where gradients of a coarse scan alias. After the edge features of Landmine detection with
    ground penetrating radar using hidden Markov models, 2001; the form is ours.
    """
    scans = np.asarray(scans, dtype=float)
    if scans.ndim < 2 or min(scans.shape[-2:]) < 3 or scans.shape[-1] <= count(lags, "lags", "edge_features"):
        raise DataError(f"scans {scans.shape}", where="edge_features", fix="give (..., P, T): P > 2, T > 2 and > lags")
    scans, size = scans - scans.mean(axis=-2, keepdims=True), scans.shape[-1]
    first, second = scans[..., :-1, :], scans[..., 1:, :]
    change = ((second - first) ** 2).sum(axis=-1)
    earlier, later = (
        np.sqrt(np.mean([(a[..., : size - k] * b[..., k:]).sum(axis=-1) ** 2 for k in range(1, lags + 1)], axis=0))
        for a, b in ((second, first), (first, second))  # b is as a, k samples later
    )
    between_traces = [_at_traces(values) for values in (change, earlier, later)]
    return np.stack([(scans**2).sum(axis=-1), *between_traces], axis=-1)


def _at_traces(values: np.ndarray) -> np.ndarray:
    """(..., P - 1) of pairs of neighbours -> (..., P): the mean of both pairs, at the ends of the one."""
    padded = np.concatenate([values[..., :1], values, values[..., -1:]], axis=-1)
    return (padded[..., :-1] + padded[..., 1:]) / 2


def _object(ground: Soil, name: str, depth: float, draw: np.random.Generator) -> list[Target]:
    permittivity, height, mine = OBJECTS[name]
    strength, places = float(reflection(ground.permittivity, permittivity)), draw.uniform(-0.05, 0.05, 1)
    if not mine:
        strength, places = strength / 3, places + draw.uniform(-0.03, 0.03, 3)
    tops = [Target(float(p), depth * (1 if mine else draw.uniform(0.8, 1.2)), strength) for p in places]
    if permittivity is None:
        return tops
    inside = 2 * height / float(wave_speed(permittivity))
    return tops + [Target(top.place, top.depth, -strength * (1 - strength**2), inside) for top in tops]
