"""Experts: generalised linear models of y given x. Each is immutable; ``fit_step`` returns a better one.

Shapes: n samples, D features; ``coef`` has D + 1 rows, the last the intercept. Every ``fit_step`` takes case weights
(n,) and never lowers the weighted log-likelihood (less the ridge term, where there is one).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from scipy.linalg import pinvh
from scipy.special import expit, gammaln

from terramoe.mixtures.newton import newton_ascent
from terramoe.mixtures.softmax_regression import softmax_log_proba, softmax_step, with_ones

MAX_LOG_RATE = 500.0  # exp of it, summed and squared a little, is still finite


class Expert(Protocol):
    """What EM asks of an expert."""

    def log_prob(self, X: np.ndarray, y: np.ndarray) -> np.ndarray:
        """(n,) log density or log mass of y given x."""

    def mean(self, X: np.ndarray) -> np.ndarray:
        """(n,) expectation of y, or (n, K) class probabilities."""

    def penalty(self) -> float:
        """What the objective loses for large coefficients."""

    def fit_step(self, X: np.ndarray, y: np.ndarray, weight: np.ndarray) -> Expert:
        """Weighted M-step."""


@dataclass(frozen=True)
class GaussianExpert:
    """``N(y | a x + b, variance)``: weighted least squares in closed form, the variance not below ``floor``.

    With a ridge the coefficients are fitted at the old variance and the variance at the new coefficients, each in
    closed form; without it the pair is the exact maximum.
    """

    coef: np.ndarray
    variance: float = 1.0
    floor: float = 1e-4
    ridge: float = 0.0

    def log_prob(self, X: np.ndarray, y: np.ndarray) -> np.ndarray:
        return -0.5 * ((y - self.mean(X)) ** 2 / self.variance + np.log(2 * np.pi * self.variance))

    def mean(self, X: np.ndarray) -> np.ndarray:
        return linear(self.coef, X)

    def penalty(self) -> float:
        return 0.5 * self.ridge * float(self.coef @ self.coef)

    def fit_step(self, X: np.ndarray, y: np.ndarray, weight: np.ndarray) -> GaussianExpert:
        total = weight.sum()
        if not total > np.finfo(float).tiny:
            return self
        coef = weighted_least_squares(self.coef, X, y, weight / total, self.ridge * self.variance / total)
        variance = max(float(weight @ (y - linear(coef, X)) ** 2 / total), self.floor)
        better = replace(self, coef=coef, variance=variance)
        # Least squares on a nearly singular design is exact only to rounding: never take a step down.
        gain = weight @ (better.log_prob(X, y) - self.log_prob(X, y)) - better.penalty() + self.penalty()
        return better if gain >= 0 else self


@dataclass(frozen=True)
class BernoulliExpert:
    """``P(y = 1) = sigmoid(a x + b)`` for y in {0, 1}."""

    coef: np.ndarray
    ridge: float = 0.0
    steps: int = 1

    def log_prob(self, X: np.ndarray, y: np.ndarray) -> np.ndarray:
        return self._log_prob(linear(self.coef, X), y)

    def mean(self, X: np.ndarray) -> np.ndarray:
        return expit(linear(self.coef, X))

    def penalty(self) -> float:
        return 0.5 * self.ridge * float(self.coef @ self.coef)

    def fit_step(self, X: np.ndarray, y: np.ndarray, weight: np.ndarray) -> BernoulliExpert:
        coef = glm_step(self.coef, X, y, weight, self.ridge, self.steps, self._log_prob, _bernoulli_moments)
        return replace(self, coef=coef)

    @staticmethod
    def _log_prob(eta: np.ndarray, y: np.ndarray) -> np.ndarray:
        return y * eta - np.logaddexp(0, eta)


@dataclass(frozen=True)
class PoissonExpert:
    """``Poisson(y | exp(a x + b))`` for counts y; the log rate is cut at ``MAX_LOG_RATE`` so that it stays finite."""

    coef: np.ndarray
    ridge: float = 0.0
    steps: int = 1

    def log_prob(self, X: np.ndarray, y: np.ndarray) -> np.ndarray:
        return self._log_prob(linear(self.coef, X), y) - gammaln(y + 1)

    def mean(self, X: np.ndarray) -> np.ndarray:
        return np.exp(np.minimum(linear(self.coef, X), MAX_LOG_RATE))

    def penalty(self) -> float:
        return 0.5 * self.ridge * float(self.coef @ self.coef)

    def fit_step(self, X: np.ndarray, y: np.ndarray, weight: np.ndarray) -> PoissonExpert:
        coef = glm_step(self.coef, X, y, weight, self.ridge, self.steps, self._log_prob, _poisson_moments)
        return replace(self, coef=coef)

    @staticmethod
    def _log_prob(eta: np.ndarray, y: np.ndarray) -> np.ndarray:
        eta = np.minimum(eta, MAX_LOG_RATE)
        return y * eta - np.exp(eta)


@dataclass(frozen=True)
class MultinomialExpert:
    """``P(y = k) = softmax_k(a_k x + b_k)`` for class numbers y in 0..K-1; ``coef`` is (D + 1, K)."""

    coef: np.ndarray
    ridge: float = 0.0
    steps: int = 1

    def log_prob(self, X: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.take_along_axis(softmax_log_proba(self.coef, X), y.astype(int)[:, None], axis=1)[:, 0]

    def mean(self, X: np.ndarray) -> np.ndarray:
        return np.exp(softmax_log_proba(self.coef, X))

    def penalty(self) -> float:
        return 0.5 * self.ridge * float((self.coef**2).sum())

    def fit_step(self, X: np.ndarray, y: np.ndarray, weight: np.ndarray) -> MultinomialExpert:
        target = np.eye(self.coef.shape[1])[y.astype(int)]
        return replace(self, coef=softmax_step(self.coef, X, target, weight, self.ridge, self.steps))


def linear(coef: np.ndarray, X: np.ndarray) -> np.ndarray:
    """``a x + b``: (n,)."""
    return X @ coef[:-1] + coef[-1]


def weighted_least_squares(
    start: np.ndarray, X: np.ndarray, y: np.ndarray, weight: np.ndarray, ridge: float
) -> np.ndarray:
    """(D + 1,) minimiser of the weighted squares plus ``ridge |coef|^2``.

    Collinear columns without ridge have many; it is the one nearest to ``start``. The second pass is iterative
    refinement: it wins back the digits that the normal equations lose.
    """
    design = with_ones(X)
    inverse = pinvh(design.T @ (weight[:, None] * design) + ridge * np.eye(design.shape[1]))
    coef = start
    for _ in range(2):
        coef = coef + inverse @ (design.T @ (weight * (y - design @ coef)) - ridge * coef)
    return coef


def glm_step(
    coef: np.ndarray,
    X: np.ndarray,
    y: np.ndarray,
    weight: np.ndarray,
    ridge: float,
    steps: int,
    log_prob: Callable[[np.ndarray, np.ndarray], np.ndarray],
    moments: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
) -> np.ndarray:
    """Safeguarded Newton steps of a one-parameter family with its canonical link: (D + 1,).

    Args:
        log_prob: (eta, y) -> (n,), up to a term that does not depend on eta.
        moments: eta -> mean and variance of y, both (n,).
    """
    design = with_ones(X)

    def value(coef: np.ndarray) -> float:
        return float(weight @ log_prob(design @ coef, y) - 0.5 * ridge * coef @ coef)

    def derivatives(coef: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mean, variance = moments(design @ coef)
        curvature = design.T @ ((weight * variance)[:, None] * design)
        return design.T @ (weight * (y - mean)) - ridge * coef, curvature + ridge * np.eye(len(coef))

    return newton_ascent(value, derivatives, coef, steps)


def _bernoulli_moments(eta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return expit(eta), expit(eta) * expit(-eta)


def _poisson_moments(eta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rate = np.exp(np.minimum(eta, MAX_LOG_RATE))
    return rate, rate
