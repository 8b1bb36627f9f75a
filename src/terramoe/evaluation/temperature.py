"""Temperature scaling: one number that makes probabilities mean what they say, without changing any decision.

On Calibration of Modern Neural Networks, 2017, arXiv 1706.04599. Fit it on pixels that neither trained nor test.
"""

from __future__ import annotations

import numpy as np
from scipy import optimize, special

from terramoe.errors import DataError

REACH = 5.0  # temperatures from exp(-5) to exp(5); beyond, probabilities are one-hot or uniform to any eye


def fit_temperature(logits: np.ndarray, truth: np.ndarray) -> float:
    """The temperature with the smallest mean negative log-likelihood.

    Args:
        logits: (N, K); logarithms of probabilities do as well. truth: (N,) in 1..K.

    Raises:
        DataError: there is no pixel to fit on, or a logit is not finite.
    """
    if len(truth) == 0 or not np.isfinite(logits).all():
        raise DataError(
            f"{len(truth)} pixels, {int((~np.isfinite(logits)).sum())} logits that are not finite",
            where="temperature",
            fix="give validation pixels with finite logits",
        )
    found = optimize.minimize_scalar(  # the likelihood has a single optimum: it is concave in 1 / temperature
        lambda log_t: negative_log_likelihood(logits / np.exp(log_t), truth),
        bounds=(-REACH, REACH),
        method="bounded",
        options={"xatol": 1e-8},
    )
    return float(np.exp(found.x))


def soften(logits: np.ndarray, temperature: float) -> np.ndarray:
    """(..., K) logits -> probabilities at a temperature; above 1 less sure, below 1 surer."""
    return special.softmax(logits / temperature, axis=-1)


def negative_log_likelihood(logits: np.ndarray, truth: np.ndarray) -> float:
    """Mean over (N, K) logits with truth (N,) in 1..K, in nats."""
    chosen = np.take_along_axis(special.log_softmax(logits, axis=-1), (truth - 1)[:, None], axis=1)
    return float(-chosen.mean())
