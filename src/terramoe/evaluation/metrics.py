"""Scores of a classification, from confusion counts and from probabilities."""

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
    """Mean recall over the classes that occur in the truth (balanced accuracy): (..., K, K) -> (...)."""
    return macro(recall(counts))


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


def iou(counts: np.ndarray) -> np.ndarray:
    """Intersection over union (Jaccard) per class, (..., K, K) -> (..., K); NaN for classes nowhere seen."""
    right = np.diagonal(counts, axis1=-2, axis2=-1)
    return _ratio(right, counts.sum(-1) + counts.sum(-2) - right)


def macro(per_class: np.ndarray) -> np.ndarray:
    """Mean of a score over the classes that have one: (..., K) -> (...)."""
    present = ~np.isnan(per_class)
    return _ratio(np.where(present, per_class, 0).sum(-1), present.sum(-1))


def weighted(per_class: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Mean of a score over classes by their number of true pixels: (..., K), (..., K, K) -> (...)."""
    support = counts.sum(-1)
    return _ratio((np.nan_to_num(per_class) * support).sum(-1), support.sum(-1))


def log_loss(probability: np.ndarray, truth: np.ndarray) -> float:
    """Mean negative logarithm of the probability (N, K) of the truth (N,) in 1..K, in nats; infinite if one is 0."""
    with np.errstate(divide="ignore"):
        chosen = np.log(np.take_along_axis(probability, (truth - 1)[:, None], axis=1))
    return float(-chosen.mean()) if len(truth) else float("nan")


def brier(probability: np.ndarray, truth: np.ndarray) -> float:
    """Mean squared distance (0..2) between probabilities (N, K) and truth (N,) in 1..K."""
    onehot = np.eye(probability.shape[1])[truth - 1]
    return float(((probability - onehot) ** 2).sum(axis=1).mean()) if len(truth) else float("nan")


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(bottom == 0, np.nan, top / bottom)
