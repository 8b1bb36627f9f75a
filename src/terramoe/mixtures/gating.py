"""Gates: which expert is responsible, before y is seen. Each is immutable; ``fit_step`` returns a better one.

Shapes: n samples, D features, E experts. ``log_score`` is the gate's term of the objective that EM raises: the log
gate probability of a softmax gate, the log joint density ``log pi_i N(x | m_i, S_i)`` of a Gaussian gate.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from scipy.linalg import solve_triangular
from scipy.special import log_softmax

from terramoe.mixtures.softmax_regression import softmax_log_proba, softmax_step

EMPTY = 1e-10  # an expert with less than this share of the weight keeps its parameters


class Gate(Protocol):
    """What EM asks of a gate."""

    num_experts: int

    def log_score(self, X: np.ndarray) -> np.ndarray:
        """(n, E): what is added to the experts' log-probabilities."""

    def penalty(self) -> float:
        """What the objective loses for large coefficients."""

    def fit_step(self, X: np.ndarray, responsibility: np.ndarray, weight: np.ndarray) -> Gate:
        """M-step on soft targets (n, E), rows summing to 1, with case weights (n,). Its Q never decreases."""


def gate_log_proba(gate: Gate, X: np.ndarray) -> np.ndarray:
    """(n, E) log gate probabilities ``log g_i(x)``, whatever the gate."""
    return log_softmax(gate.log_score(X), axis=1)


@dataclass(frozen=True)
class SoftmaxGate:
    """``g_i(x) = softmax_i(v_i x + c_i)``, fitted by safeguarded Newton steps (iteratively reweighted least squares).

    Adding one vector to all ``v_i`` changes nothing. Hierarchical Mixtures of Experts and the EM Algorithm, 1994,
    DOI 10.1162/neco.1994.6.2.181.

    Attributes:
        coef: (D + 1, E), last row the intercepts.
        ridge: weight of the squared coefficients in the objective.
        steps: Newton steps per M-step.
    """

    coef: np.ndarray
    ridge: float = 0.0
    steps: int = 1

    @property
    def num_experts(self) -> int:
        return self.coef.shape[1]

    def log_score(self, X: np.ndarray) -> np.ndarray:
        return softmax_log_proba(self.coef, X)

    def penalty(self) -> float:
        return 0.5 * self.ridge * float((self.coef**2).sum())

    def fit_step(self, X: np.ndarray, responsibility: np.ndarray, weight: np.ndarray) -> SoftmaxGate:
        return replace(self, coef=softmax_step(self.coef, X, responsibility, weight, self.ridge, self.steps))


@dataclass(frozen=True)
class GaussianGate:
    """``g_i(x)`` proportional to ``pi_i N(x | m_i, S_i)``: a model of x and y together, with a closed-form M-step.

    An Alternative Model for Mixtures of Experts, 1994, NIPS 7. The covariance floor clips eigenvalues, which is the
    exact maximum under the constraint ``S_i >= floor``, so EM stays strictly monotone (adding the floor would not).

    Attributes:
        log_prior: (E,) ``log pi_i``.
        mean: (E, D).
        covariance: (E, D, D).
        floor: least eigenvalue of a covariance.
    """

    log_prior: np.ndarray
    mean: np.ndarray
    covariance: np.ndarray
    floor: float = 1e-4

    @property
    def num_experts(self) -> int:
        return len(self.log_prior)

    def log_score(self, X: np.ndarray) -> np.ndarray:
        columns = [gaussian_log_density(X, m, S) for m, S in zip(self.mean, self.covariance, strict=True)]
        return self.log_prior + np.stack(columns, axis=1)

    def penalty(self) -> float:
        return 0.0

    def fit_step(self, X: np.ndarray, responsibility: np.ndarray, weight: np.ndarray) -> GaussianGate:
        share = responsibility * weight[:, None]
        total = share.sum(axis=0)
        mean, covariance = self.mean.copy(), self.covariance.copy()
        for i in np.flatnonzero(total > EMPTY * weight.sum()):
            mean[i] = share[:, i] @ X / total[i]
            centred = X - mean[i]
            covariance[i] = floor_eigenvalues(centred.T @ (share[:, i, None] * centred) / total[i], self.floor)
        prior = np.maximum(total / total.sum(), np.finfo(float).tiny)
        return replace(self, log_prior=np.log(prior), mean=mean, covariance=covariance)


def gaussian_log_density(X: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """(n,) log N(x | mean (D,), covariance (D, D))."""
    root = np.linalg.cholesky(covariance)
    whitened = solve_triangular(root, (X - mean).T, lower=True)
    return -0.5 * ((whitened**2).sum(axis=0) + len(mean) * np.log(2 * np.pi)) - np.log(np.diag(root)).sum()


def floor_eigenvalues(covariance: np.ndarray, floor: float) -> np.ndarray:
    """The covariance of greatest likelihood among those with no eigenvalue below ``floor``."""
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.maximum(values, floor)) @ vectors.T
