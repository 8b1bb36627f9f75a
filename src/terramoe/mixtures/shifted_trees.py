"""Smoothers on several displaced quad-trees, averaged: the borders of one tree's nodes are inside the next one's.

A quad-tree parts neighbours that meet at a border of a coarse node, so its maps show blocks. Displacing the tree and
averaging takes them out, for any expert alike. The papers on mixtures of such smoothers do not say whether they did it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from terramoe.errors import ConfigError
from terramoe.mixtures.kalman_bank import KalmanExpert, MixturePosterior, mixture_moments, smooth_with
from terramoe.mixtures.quad_tree import Observation, leaf_shape

SPREAD = (0.7548776662466927, 0.5698402909980532)  # multiples of these, modulo 1, fill the square evenly


def shift_offsets(observations: Sequence[Observation], shifts: int) -> list[tuple[int, int]]:
    """``shifts`` displacements (rows, columns) in leaves, the first (0, 0); multiples of the coarsest pixel.

    Raises:
        ConfigError: a number of shifts that is no whole number above 0.
    """
    if isinstance(shifts, bool) or not isinstance(shifts, int | np.integer) or shifts < 1:
        raise ConfigError(f"shifts is {shifts!r}", where="shift_offsets", fix="use a whole number from 1")
    step = 2 ** max(one.scale for one in observations)
    reach = -(-max(leaf_shape(observations)) // (2 * step))  # half the scene: every level of the tree moves
    return [tuple(step * int(reach * (index * share % 1)) for share in SPREAD) for index in range(shifts)]


def displaced(observation: Observation, offset: tuple[int, int]) -> Observation:
    """The same with gaps above and to the left; ``offset`` in leaves, multiples of its pixel."""
    rows, columns = (length >> observation.scale for length in offset)
    pad = ((rows, 0), (columns, 0))
    value = np.pad(observation.value, pad, constant_values=np.nan)
    return replace(observation, value=value, variance=np.pad(observation.variance, pad, constant_values=np.inf))


def shifted_moments(
    expert: KalmanExpert, observations: Sequence[Observation], root_variance: float, shifts: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance (H, W) of one expert over ``shifts`` trees of equal weight, by the law of total variance.

    The variance is cautious: that the errors of several trees partly cancel in the mean is not counted.
    """
    height, width = leaf_shape(observations)
    means, variances = [], []
    for rows, columns in shift_offsets(observations, shifts):
        found = smooth_with(expert, [displaced(one, (rows, columns)) for one in observations], root_variance)
        inside = (slice(rows, rows + height), slice(columns, columns + width))
        means.append(found.mean[-1][inside])
        variances.append(found.variance[-1][inside])
    mean = np.stack(means, axis=-1)
    return mixture_moments(np.full(mean.shape, 1 / shifts), mean, np.stack(variances, axis=-1))


def shifted_posterior(
    experts: Sequence[KalmanExpert],
    weight: np.ndarray,
    observations: Sequence[Observation],
    root_variance: float,
    shifts: int = 1,
) -> MixturePosterior:
    """What K experts say together, with weights (H * W, K) of a gate, row by row."""
    found = [shifted_moments(expert, observations, root_variance, shifts) for expert in experts]
    mean, variance = (np.stack(part, axis=-1) for part in zip(*found, strict=True))
    weight = weight.reshape(mean.shape)
    return MixturePosterior(*mixture_moments(weight, mean, variance), weight, mean, variance)
