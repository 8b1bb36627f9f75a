"""A Gaussian process on a quad-tree, and what is observed of it.

A node of level m - 1 has four children in level m; level 0 holds the roots and level M the leaves, the pixels of the
finest grid. Multiscale Recursive Estimation, Data Fusion, and Regularization, 1994, IEEE Transactions on Automatic
Control 39(3).

Shapes: the leaves shown are (H, W). Level m holds (ceil(H / 2 ** (M - m)), ceil(W / 2 ** (M - m))) nodes of interest;
inside it is padded to whole trees, with nodes that nobody observes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from terramoe.errors import ConfigError, DataError

LEAST, MOST = 1e-100, 1e100  # of variances and squared values: their products and quotients stay finite
DEEPEST = 16  # 65 536 leaves along one side of a tree


@dataclass(frozen=True)
class TreeModel:
    """``x(child) = transition[m] x(parent) + w``, ``w ~ N(0, process_variance[m])``, coarse to fine.

    Attributes:
        root_mean, root_variance: of each root, independent of the other roots; the variance above 0.
        process_variance: (M,) of the step into levels 1..M, each >= 0.
        transition: (M,) factors, none 0; None: all 1.

    Raises:
        ConfigError: a value that is not finite or out of range, or two lengths that differ.
    """

    root_mean: float
    root_variance: float
    process_variance: np.ndarray
    transition: np.ndarray | None = None

    def __post_init__(self) -> None:
        steps = _vector(self.process_variance, "process_variance")
        factors = np.ones(len(steps)) if self.transition is None else _vector(self.transition, "transition")
        if len(steps) > DEEPEST or len(factors) != len(steps):
            raise ConfigError(
                f"{len(steps)} process variances and {len(factors)} transitions",
                where="TreeModel",
                fix=f"give one of each per level, at most {DEEPEST}",
            )
        mean, variance = (_number(getattr(self, name), name) for name in ("root_mean", "root_variance"))
        _require(abs(mean) <= MOST**0.5, "root_mean", mean, "finite, and no larger than 1e50")
        _require(LEAST <= variance <= MOST, "root_variance", variance, f"from {LEAST:g} to {MOST:g}")
        _require(((steps >= 0) & (steps <= MOST)).all(), "process_variance", steps, f"from 0 to {MOST:g}")
        size = np.abs(factors)
        _require(((size >= 1e-3) & (size <= 1e3)).all(), "transition", factors, "between 0.001 and 1000 in size")
        for name, value in {"root_mean": mean, "root_variance": variance, "process_variance": steps}.items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "transition", factors)

    @property
    def depth(self) -> int:
        """M, the level of the leaves."""
        return len(self.process_variance)

    def prior(self) -> tuple[np.ndarray, np.ndarray]:
        """(M + 1,) mean and variance of a node of each level before anything is observed."""
        mean, variance = [self.root_mean], [self.root_variance]
        for factor, step in zip(self.transition, self.process_variance, strict=True):
            mean.append(factor * mean[-1])
            variance.append(factor**2 * variance[-1] + step)
        return np.array(mean), np.array(variance)


def fractal_model(depth: int, step: float, hurst: float, root_mean: float, root_variance: float) -> TreeModel:
    """A surface of 1/f type: the step into the leaves has standard deviation ``step``, each coarser one
    ``2 ** hurst`` times the next. The larger ``hurst``, the smoother the surface for the same relief.

    Raises:
        ConfigError: a depth that is no whole number from 0 to 16, a step or Hurst exponent out of range.
    """
    if isinstance(depth, bool) or not isinstance(depth, int | np.integer) or not 0 <= depth <= DEEPEST:
        raise ConfigError(f"depth is {depth!r}", where="fractal_model", fix=f"use a whole number from 0 to {DEEPEST}")
    step, hurst = _number(step, "step"), _number(hurst, "hurst")
    _require(0 < step <= MOST**0.25, "step", step, "above 0 and at most 1e25")
    _require(0 <= hurst <= 2, "hurst", hurst, "from 0 to 2")
    return TreeModel(root_mean, root_variance, (step * 2.0 ** (hurst * np.arange(depth)[::-1])) ** 2)


@dataclass(frozen=True)
class Observation:
    """What one sensor saw: ``value = x + noise`` at the nodes of one level.

    Attributes:
        value: (h, w) in the unit of the state; NaN marks a gap.
        variance: of the noise, a number or (h, w), above 0 where there is a value.
        scale: how many levels above the leaves: one pixel is ``2 ** scale`` leaves wide.

    Raises:
        DataError: a shape that does not fit, an infinite value, or a variance that is not above 0.
        ConfigError: a scale that is no whole number >= 0.
    """

    value: np.ndarray
    variance: np.ndarray
    scale: int = 0

    def __post_init__(self) -> None:
        whole = isinstance(self.scale, int | np.integer) and not isinstance(self.scale, bool)
        if not whole or not 0 <= self.scale <= DEEPEST:
            fix = f"use a whole number from 0 to {DEEPEST}"
            raise ConfigError(f"scale is {self.scale!r}", where="Observation", fix=fix)
        try:
            value = np.array(self.value, dtype=np.float64)  # a copy: what was checked cannot change
            variance = np.array(np.broadcast_to(np.asarray(self.variance, dtype=np.float64), value.shape))
        except (TypeError, ValueError) as error:
            raise DataError(
                "values and variances are no numeric arrays of one shape",
                where="Observation",
                fix="give value (h, w) and variance as a number or (h, w)",
            ) from error
        if value.ndim != 2 or 0 in value.shape:
            raise DataError(f"value has shape {value.shape}", where="Observation", fix="give (h, w) with pixels")
        seen = ~np.isnan(value)
        if (np.abs(value[seen]) > MOST**0.5).any():
            raise DataError("a value is infinite or above 1e50", where="Observation", fix="mark gaps with NaN")
        if not ((variance[seen] >= LEAST) & (variance[seen] <= MOST)).all():
            raise DataError(
                "a noise variance is not a number above 0",
                where="Observation",
                fix="give a small variance for exact data, and NaN as the value of a gap",
            )
        variance[~seen] = np.inf
        object.__setattr__(self, "value", value)
        object.__setattr__(self, "variance", variance)

    @property
    def seen(self) -> np.ndarray:
        """(h, w) bool: where there is a value."""
        return ~np.isnan(self.value)


def level_shape(shape: tuple[int, int], scale: int) -> tuple[int, int]:
    """How many nodes cover leaves (H, W), ``scale`` levels above them."""
    height, width = shape
    return -(-height // 2**scale), -(-width // 2**scale)


def depth_of(shape: tuple[int, int]) -> int:
    """The depth with which a single tree covers leaves (H, W)."""
    return int(max(shape) - 1).bit_length()


def leaf_shape(observations: Sequence[Observation]) -> tuple[int, int]:
    """(H, W) of the finest observation, which must be of scale 0; DataError if the others do not fit."""
    finest = [observation.value.shape for observation in observations if observation.scale == 0]
    if not finest:
        fix = "give the shape of the leaves"
        raise DataError("no observation is on the grid of the leaves", where="observations", fix=fix)
    check_shapes(observations, finest[0])
    return finest[0]


def check_leaves(shape: object) -> None:
    """DataError unless ``shape`` is two whole numbers above 0."""
    sides = shape if isinstance(shape, tuple) else ()
    if len(sides) != 2 or not all(isinstance(side, int | np.integer) and side > 0 for side in sides):
        raise DataError(f"the shape of the leaves is {shape!r}", where="shape", fix="give (H, W), both above 0")


def check_shapes(observations: Sequence[Observation], shape: tuple[int, int]) -> None:
    """DataError unless each observation covers leaves (H, W) exactly."""
    for index, observation in enumerate(observations):
        wanted = level_shape(shape, observation.scale)
        if observation.value.shape != wanted:
            raise DataError(
                f"shape {observation.value.shape} at scale {observation.scale} does not cover {shape} leaves",
                where=f"observation {index}",
                fix=f"give {wanted} pixels",
            )


def spread(nodes: np.ndarray, times: int = 1) -> np.ndarray:
    """(..., h, w) -> (..., 2 ** times h, 2 ** times w): each node's value for all its descendants."""
    return nodes.repeat(2**times, axis=-2).repeat(2**times, axis=-1)


def siblings(nodes: np.ndarray) -> np.ndarray:
    """(4, h / 2, w / 2): the four children of each parent, from a level (h, w) of whole families."""
    height, width = nodes.shape
    return nodes.reshape(height // 2, 2, width // 2, 2).transpose(1, 3, 0, 2).reshape(4, height // 2, width // 2)


def family(children: np.ndarray) -> np.ndarray:
    """(4, h, w) -> (2 h, 2 w): the inverse of ``siblings``."""
    _, height, width = children.shape
    return children.reshape(2, 2, height, width).transpose(2, 0, 3, 1).reshape(2 * height, 2 * width)


def _vector(values: object, name: str) -> np.ndarray:
    try:
        array = np.array(values, dtype=np.float64)
    except (TypeError, ValueError):
        array = np.empty((0, 0))
    _require(array.ndim == 1 and np.isfinite(array).all(), name, values, "a row of finite numbers")
    return array


def _number(value: object, name: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = np.nan
    _require(np.isfinite(number), name, value, "a finite number")
    return number


def _require(holds: bool, name: str, value: object, wanted: str) -> None:
    if not holds:
        raise ConfigError(f"{name} is {value}", where="TreeModel", fix=f"use a {name} that is {wanted}")
