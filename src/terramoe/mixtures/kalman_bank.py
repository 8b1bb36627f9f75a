"""A bank of Kalman smoothers: which there are to choose from, what each predicts, and which few are worth keeping."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import logsumexp, softmax

from terramoe.errors import ConfigError, DataError
from terramoe.mixtures.kalman_tree import Smoothed, smooth
from terramoe.mixtures.quad_tree import Observation, depth_of, fractal_model, leaf_shape

HURST = (0.1, 0.4, 0.7, 1.0, 1.3)
STEPS = 2.0 ** -np.arange(1, 8.5, 0.5)  # of the standard deviation of the data: from half of it to 1 / 256
PROPORTION_STEPS = 20  # of EM on the shares of the experts, in the choice among many


@dataclass(frozen=True)
class KalmanExpert:
    """One smoother: how rough it takes the surface to be, and how far it trusts each sensor.

    Attributes:
        step: standard deviation between a pixel and its parent on the quad-tree, in the unit of the data.
        hurst: each coarser step is ``2 ** hurst`` times larger; see ``quad_tree.fractal_model``.
        noise: a factor on the noise variance of each observation; empty: as the observations say.
    """

    step: float
    hurst: float
    noise: tuple[float, ...] = ()


@dataclass(frozen=True)
class MixturePosterior:
    """What a mixture of K experts says of each of (H, W) pixels.

    Attributes:
        mean, variance: (H, W), the variance by the law of total variance.
        weight: (H, W, K) of the gate, summing to 1.
        expert_mean, expert_variance: (H, W, K).
    """

    mean: np.ndarray
    variance: np.ndarray
    weight: np.ndarray
    expert_mean: np.ndarray
    expert_variance: np.ndarray


def mixture_moments(weight: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(..., K) weights, means and variances -> mean and variance (...): the mean variance plus the variance of the
    means."""
    centre = (weight * mean).sum(axis=-1)
    return centre, (weight * (variance + (mean - centre[..., None]) ** 2)).sum(axis=-1)


def default_bank(spread: float) -> tuple[KalmanExpert, ...]:
    """75 experts for data of standard deviation ``spread``: five Hurst exponents, steps a factor of sqrt 2 apart."""
    return tuple(KalmanExpert(float(spread * step), hurst) for hurst in HURST for step in STEPS)


def check_scene(observations: Sequence[Observation]) -> None:
    """DataError unless there is at least one observation, and nothing else."""
    listed = isinstance(observations, Sequence) and len(observations) > 0
    if not listed or not all(isinstance(one, Observation) for one in observations):
        raise DataError("no list of observations", where="KalmanMixture", fix="give [Observation(...), ...]")


def smooth_with(expert: KalmanExpert, observations: Sequence[Observation], root_variance: float) -> Smoothed:
    """The posterior under one expert, on the smallest tree that holds all observations; the root's prior mean is that
    of all values.

    Raises:
        ConfigError: a noise factor that is missing or not above 0, or an impossible step or Hurst exponent.
        DataError: no observation has a value.
    """
    values = np.concatenate([one.value[one.seen] for one in observations])
    if not len(values):
        raise DataError("no observation has a value", where="observations", fix="give a scene that was seen")
    if expert.noise:
        if len(expert.noise) != len(observations) or not all(0 < factor < np.inf for factor in expert.noise):
            raise ConfigError(
                f"noise factors {expert.noise} for {len(observations)} observations",
                where="KalmanExpert",
                fix="give one factor above 0 for each observation",
            )
        pairs = zip(observations, expert.noise, strict=True)
        observations = [replace(one, variance=one.variance * factor) for one, factor in pairs]
    depth = max(depth_of(leaf_shape(observations)), *(one.scale for one in observations))
    model = fractal_model(depth, expert.step, expert.hurst, float(values.mean()), root_variance)
    return smooth(model, observations)


def bank_log_density(
    experts: Sequence[KalmanExpert], observations: Sequence[Observation], index: int, root_variance: float
) -> np.ndarray:
    """(n, experts) log density of each of the n values of observation ``index``, given all other values of all
    sensors: its leave-one-out density."""
    observation = observations[index]
    seen, columns = observation.seen, []
    for expert in experts:
        mean, variance = (part[seen] for part in smooth_with(expert, observations, root_variance).left_out[index])
        variance = variance + (expert.noise[index] if expert.noise else 1.0) * observation.variance[seen]
        gap = observation.value[seen] - mean
        columns.append(-0.5 * (gap**2 / variance + np.log(2 * np.pi * variance)))
    return np.stack(columns, axis=1)


def choose_experts(log_density: np.ndarray, count: int) -> list[int]:
    """Columns of (n, C) log densities: the best alone, then each time the one that adds most to a plain mixture.

    The shares of the experts are fitted, but are the same everywhere: the gate comes later. Ties go to the earlier.
    """
    chosen = [int(log_density.sum(axis=0).argmax())]
    while len(chosen) < count:
        left = [column for column in range(log_density.shape[1]) if column not in chosen]
        heights = [_plain_mixture(log_density[:, [*chosen, column]]) for column in left]
        chosen.append(left[int(np.argmax(heights))])
    return chosen


def _plain_mixture(log_density: np.ndarray) -> float:
    """Log-likelihood of a mixture of fixed densities (n, E) after a few steps of EM on its shares."""
    log_share = np.full(log_density.shape[1], -np.log(log_density.shape[1]))
    for _ in range(PROPORTION_STEPS):
        share = softmax(log_density + log_share, axis=1).mean(axis=0)
        log_share = np.log(np.maximum(share, np.finfo(float).tiny))
    return float(logsumexp(log_density + log_share, axis=1).sum())
