"""Softmax regression on soft targets with case weights: the M-step of softmax gates and multinomial experts.

Shapes: n samples, D features, K outcomes; ``coef`` is (D + 1, K), its last row the intercepts.
"""

from __future__ import annotations

import numpy as np
from scipy.special import log_softmax

from terramoe.mixtures.newton import newton_ascent


def with_ones(X: np.ndarray) -> np.ndarray:
    """(n, D) -> (n, D + 1): a last column of ones for the intercept."""
    return np.column_stack([X, np.ones(len(X))])


def softmax_log_proba(coef: np.ndarray, X: np.ndarray) -> np.ndarray:
    """(n, K) log-probabilities."""
    return log_softmax(X @ coef[:-1] + coef[-1], axis=1)


def softmax_value(coef: np.ndarray, X: np.ndarray, target: np.ndarray, weight: np.ndarray, ridge: float) -> float:
    """``sum_n weight_n sum_k target_nk log p_k(x_n) - ridge / 2 |coef|^2``, the part Q of the EM bound."""
    return float(weight @ (target * softmax_log_proba(coef, X)).sum(axis=1) - 0.5 * ridge * (coef**2).sum())


def softmax_derivatives(
    coef: np.ndarray, X: np.ndarray, target: np.ndarray, weight: np.ndarray, ridge: float
) -> tuple[np.ndarray, np.ndarray]:
    """Gradient and negative Hessian of ``softmax_value`` for ``coef.ravel()``: (P,) and (P, P), P = (D + 1) K.

    Without ridge the gradient is ``X^T (weight (target - p))``, zero at convergence. Rows of ``target`` sum to 1.
    """
    design, prob = with_ones(X), np.exp(softmax_log_proba(coef, X))
    features, outcomes = coef.shape
    gradient = design.T @ (weight[:, None] * (target - prob)) - ridge * coef
    curvature = np.empty((features, outcomes, features, outcomes))
    for i in range(outcomes):
        for j in range(i, outcomes):
            scale = weight * prob[:, i] * ((i == j) - prob[:, j])
            curvature[:, i, :, j] = curvature[:, j, :, i] = design.T @ (scale[:, None] * design)
    curvature = curvature.reshape(coef.size, coef.size)
    curvature[np.diag_indices(coef.size)] += ridge
    return gradient.ravel(), curvature


def softmax_step(
    coef: np.ndarray, X: np.ndarray, target: np.ndarray, weight: np.ndarray, ridge: float, steps: int
) -> np.ndarray:
    """At most ``steps`` safeguarded Newton steps from ``coef``: (D + 1, K). ``softmax_value`` never decreases."""
    problem = (X, target, weight, ridge)
    return newton_ascent(
        lambda flat: softmax_value(flat.reshape(coef.shape), *problem),
        lambda flat: softmax_derivatives(flat.reshape(coef.shape), *problem),
        coef.ravel(),
        steps,
    ).reshape(coef.shape)
