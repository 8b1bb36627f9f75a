"""Local fractal features of a surface with gaps: its Hurst exponent and its roughness around each pixel.

Of a fractal surface the mean squared difference of two points, its variogram, grows as a power of their distance:
``gamma(d) = roughness ** 2 d ** (2 H)``. A plot of log gamma over log d is then a line whose slope gives the Hurst
exponent H; the fractal dimension of the surface is 3 - H. Distances are dyadic, in leaves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import uniform_filter

from terramoe.errors import ConfigError, DataError
from terramoe.mixtures.kalman_bank import KalmanExpert
from terramoe.mixtures.quad_tree import Observation, leaf_shape, spread

HURST_RANGE = (0.05, 1.0)
PRIOR_PAIRS = 16.0  # a window with so many pairs counts as much as the whole scene
RIDGE = 0.1  # pulls the local line to that of the scene where few distances were seen
FLOOR = 0.01  # of the scene's variogram: what is left where the noise explains all differences


@dataclass(frozen=True)
class Variogram:
    """Of a scene and around each of its leaves.

    Attributes:
        whole: (lags,) of the scene, at distances 1, 2, 4 ...; NaN where no two values lie so far apart.
        local: (H, W, lags), drawn to ``whole`` where few pairs are near.
        share: (H, W, lags) weight of the local pairs against the scene, 0 to 1.
    """

    whole: np.ndarray
    local: np.ndarray
    share: np.ndarray


def variogram(observations: Sequence[Observation], window: int, lags: int) -> Variogram:
    """Mean squared differences along rows and columns, less what the noise adds, from all sensors together.

    A coarse sensor sees means, whose nearest differences are too small: of it, distances from two pixels count.

    Args:
        window: leaves along the side of the window for short distances; it is 4 distances wide for longer ones.
        lags: how many dyadic distances.

    Raises:
        ConfigError: a window below 2 or a number of lags below 1. DataError: no two values that can be compared.
    """
    for name, value, least in (("window", window, 2), ("lags", lags, 1)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise ConfigError(f"{name} is {value!r}", where="variogram", fix=f"use a whole number from {least}")
    height, width = leaf_shape(observations)
    total, count = np.zeros((2, lags, height, width))
    whole = np.zeros((2, lags))
    for one in observations:
        for lag in range(one.scale + (one.scale > 0), lags):
            pairs, square = _differences(one, 2 ** (lag - one.scale))
            whole[0, lag] += square.sum()
            whole[1, lag] += pairs.sum()
            side = max(2, max(window, 4 * 2**lag) >> one.scale)
            for sums, part in ((total, square), (count, pairs)):
                near = uniform_filter(part, side, mode="constant") * side**2
                sums[lag] += spread(near, one.scale)[:height, :width]
    if not whole[1].any():
        fix = "give a larger or denser scene, or more lags"
        raise DataError("no two values lie a dyadic distance apart", where="variogram", fix=fix)
    mean = np.divide(*whole, out=np.full(lags, np.nan), where=whole[1] > 0)
    positive = mean[mean > 0]
    least = positive.min() * FLOOR if len(positive) else 1.0
    scene = np.where(np.isnan(mean), np.nan, np.maximum(mean, least))
    count = np.where(count > 0.5, count, 0.0)  # running sums leave traces of rounding
    known = np.nan_to_num(scene, nan=1.0)[:, None, None]
    local = np.maximum((np.where(count > 0, total, 0.0) + PRIOR_PAIRS * known) / (count + PRIOR_PAIRS), FLOOR * known)
    return Variogram(scene, np.moveaxis(local, 0, -1), np.moveaxis(count / (count + PRIOR_PAIRS), 0, -1))


def fractal_features(
    observations: Sequence[Observation], window: int = 32, lags: int = 5, otherwise: np.ndarray | None = None
) -> np.ndarray:
    """(H, W, 2): Hurst exponent and log roughness of each leaf. Arguments and errors as ``variogram``.

    ``otherwise`` (2,) are the features of a scene without two values that can be compared, instead of an error.

    The scene's line is fitted by least squares; around each leaf the deviation from it is a line again, fitted with
    the shares as weights and a small ridge, so that it vanishes where nothing is near.
    """
    try:
        found = variogram(observations, window, lags)
    except DataError:
        if otherwise is None:
            raise
        return np.broadcast_to(otherwise, (*leaf_shape(observations), 2))
    seen = np.isfinite(found.whole)
    at = np.arange(lags)[seen].astype(float)
    level = np.log2(found.whole[seen])
    slope, start = np.polyfit(at, level, 1) if len(at) > 1 else (1.0, level[0] - at[0])
    gap, weight = np.log2(found.local[..., seen]) - level, found.share[..., seen]
    centre = at.mean()
    at = at - centre
    s0, s1, s2 = ((weight * at**power).sum(axis=-1) for power in range(3))
    g0, g1 = ((weight * gap * at**power).sum(axis=-1) for power in range(2))
    bottom = (s0 + RIDGE) * (s2 + RIDGE) - s1**2
    shift = (g0 * (s2 + RIDGE) - g1 * s1) / bottom
    tilt = (g1 * (s0 + RIDGE) - g0 * s1) / bottom
    hurst = np.clip((slope + tilt) / 2, *HURST_RANGE)
    middle = start + slope * centre + shift  # of log2 gamma; the line is turned there
    return np.stack([hurst, (middle / 2 - hurst * centre) * np.log(2)], axis=-1)


def fractal_expert(hurst: float, log_roughness: float) -> KalmanExpert:
    """The smoother of a surface with this variogram.

    Four leaves with one parent vary by 3/4 of the squared step on the tree, and by
    ``roughness ** 2 (1/4 + 2 ** H / 8)`` on the surface.
    """
    step = np.exp(log_roughness) * np.sqrt(1 / 3 + 2.0**hurst / 6)
    return KalmanExpert(float(step), float(hurst))


def _differences(observation: Observation, lag: int) -> tuple[np.ndarray, np.ndarray]:
    """At the middle of each pair ``lag`` pixels apart: how many there are, and their squared difference less noise."""
    value, variance = np.where(observation.seen, observation.value, 0.0), observation.variance
    pairs, square = np.zeros((2, *value.shape))
    for axis in (0, 1):
        length = value.shape[axis] - lag
        if length <= 0:
            continue
        first, last, middle = (
            tuple(slice(at, at + length) if a == axis else slice(None) for a in (0, 1)) for at in (0, lag, lag // 2)
        )
        both = observation.seen[first] & observation.seen[last]
        noise = np.where(both, variance[first] + variance[last], 0.0)
        pairs[middle] += both
        square[middle] += np.where(both, (value[last] - value[first]) ** 2 - noise, 0.0)
    return pairs, square
