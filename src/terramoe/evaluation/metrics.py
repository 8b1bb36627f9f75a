"""Scores of a pixel classification, from confusion counts."""

from __future__ import annotations

import numpy as np
from sklearn.metrics import confusion_matrix


def confusion(truth: np.ndarray, prediction: np.ndarray, classes: int) -> np.ndarray:
    """(K, K) int64 counts, rows truth, columns prediction; both inputs 1-D with values 1..K."""
    if truth.size == 0:
        return np.zeros((classes, classes), dtype=np.int64)
    return confusion_matrix(truth, prediction, labels=np.arange(1, classes + 1))


def overall_accuracy(counts: np.ndarray) -> np.ndarray:
    """Share of correct pixels: (..., K, K) -> (...); NaN without pixels."""
    total = counts.sum((-2, -1))
    return _ratio(np.trace(counts, axis1=-2, axis2=-1), total)


def average_accuracy(counts: np.ndarray) -> np.ndarray:
    """Mean recall over the classes that occur in the truth: (..., K, K) -> (...)."""
    recalls = recall(counts)
    present = ~np.isnan(recalls)
    return _ratio(np.where(present, recalls, 0).sum(-1), present.sum(-1))


def kappa(counts: np.ndarray) -> np.ndarray:
    """Cohen's kappa: agreement beyond chance, (..., K, K) -> (...)."""
    total = counts.sum((-2, -1))
    observed = overall_accuracy(counts)
    expected = _ratio((counts.sum(-1) * counts.sum(-2)).sum(-1), total.astype(float) ** 2)
    return _ratio(observed - expected, 1 - expected)


def recall(counts: np.ndarray) -> np.ndarray:
    """Per class, (..., K, K) -> (..., K); NaN for classes that do not occur in the truth."""
    return _ratio(np.diagonal(counts, axis1=-2, axis2=-1), counts.sum(-1))


def precision(counts: np.ndarray) -> np.ndarray:
    """Per class, (..., K, K) -> (..., K); NaN for classes never predicted."""
    return _ratio(np.diagonal(counts, axis1=-2, axis2=-1), counts.sum(-2))


def f1(counts: np.ndarray) -> np.ndarray:
    """Per class, (..., K, K) -> (..., K): harmonic mean of precision and recall; NaN for classes nowhere seen."""
    return _ratio(2 * np.diagonal(counts, axis1=-2, axis2=-1), counts.sum(-1) + counts.sum(-2))


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(bottom == 0, np.nan, top / bottom)
