"""Scores of a fused surface: of its mean, of its intervals and of its whole predictive density."""

from __future__ import annotations

import numpy as np
from scipy.special import logsumexp
from scipy.stats import norm

from terramoe.errors import DataError
from terramoe.evaluation.metrics_regression import bias, mae, rmse
from terramoe.mixtures.kalman_bank import MixturePosterior

LEVELS = (50, 90, 95)  # percent, of the central intervals whose coverage is counted


def surface_scores(
    posterior: MixturePosterior, truth: np.ndarray, where: np.ndarray, noise_variance: np.ndarray | float = 0.0
) -> dict[str, float]:
    """RMSE, MAE and bias of the mean, coverage of intervals and negative log density of the mixture.

    Args:
        truth: (H, W), or values of a sensor.
        where: (H, W) bool: which pixels count.
        noise_variance: of the values, a number or (H, W): it belongs to what is predicted. 0 for the truth itself.

    Returns:
        rmse, mae, bias (mean minus truth; all in the unit of the surface), coverage_50, coverage_90, coverage_95
        (shares of pixels), nll (mean, in nats).

    Raises:
        DataError: no pixel counts, or the truth has another shape.
    """
    if truth.shape != posterior.mean.shape or where.shape != truth.shape:
        raise DataError(
            f"truth {truth.shape} for a surface {posterior.mean.shape}", where="surface_scores", fix="give one grid"
        )
    if not where.any():
        raise DataError("no pixel to score", where="surface_scores", fix="give values of the truth, or smaller blocks")
    values, mean = truth[where], posterior.mean[where]
    noise = np.broadcast_to(noise_variance, truth.shape)[where]
    weight, centre = posterior.weight[where], posterior.expert_mean[where]
    spread = np.sqrt(posterior.expert_variance[where] + noise[:, None])
    probability = (weight * norm.cdf(values[:, None], centre, spread)).sum(axis=-1)
    log_density = logsumexp(norm.logpdf(values[:, None], centre, spread), axis=-1, b=weight)
    reach = np.abs(2 * probability - 1)
    return {
        "rmse": rmse(values, mean),
        "mae": mae(values, mean),
        "bias": bias(values, mean),
        **{f"coverage_{level}": float((reach <= level / 100).mean()) for level in LEVELS},
        "nll": -float(log_density.mean()),
    }
