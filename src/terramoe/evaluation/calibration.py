"""Do the probabilities mean what they say?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from terramoe.evaluation.metrics import brier


@dataclass(frozen=True)
class Reliability:
    """Confidence against accuracy in equal-width bins, and what follows from it.

    Attributes:
        confidence, accuracy: (bins,) mean top probability and share correct; NaN in empty bins.
        count: (bins,) predictions.
        ece: expected calibration error, 0 for honest probabilities.
        brier: mean squared distance between probabilities and truth (0..2).
    """

    confidence: np.ndarray
    accuracy: np.ndarray
    count: np.ndarray
    ece: float
    brier: float


def reliability(probability: np.ndarray, truth: np.ndarray, bins: int = 15) -> Reliability:
    """Calibration of the predicted class (On Calibration of Modern Neural Networks, 2017, arXiv 1706.04599).

    Args:
        probability: (N, K), rows sum to 1. truth: (N,) in 1..K.
    """
    top = probability.max(axis=1)
    correct = probability.argmax(axis=1) + 1 == truth
    number = np.clip(np.ceil(top * bins).astype(int) - 1, 0, bins - 1)  # bins are open on the left
    count = np.bincount(number, minlength=bins)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(number, weights=top, minlength=bins) / count
        accuracy = np.bincount(number, weights=correct, minlength=bins) / count
    gap = np.where(count > 0, np.abs(np.nan_to_num(confidence) - np.nan_to_num(accuracy)), 0)
    return Reliability(
        confidence=confidence,
        accuracy=accuracy,
        count=count,
        ece=float((gap * count).sum() / max(count.sum(), 1)),
        brier=brier(probability, truth),
    )
