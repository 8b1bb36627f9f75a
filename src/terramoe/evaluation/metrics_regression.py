"""Scores of a regression, such as biomass, yield or water depth."""

from __future__ import annotations

import numpy as np


def rmse(truth: np.ndarray, prediction: np.ndarray) -> float:
    """Root of the mean squared error, in the unit of the truth; inputs of one shape. NaN without values."""
    return float(np.sqrt(_mean((prediction - truth) ** 2)))


def mae(truth: np.ndarray, prediction: np.ndarray) -> float:
    """Mean absolute error, in the unit of the truth."""
    return _mean(np.abs(prediction - truth))


def bias(truth: np.ndarray, prediction: np.ndarray) -> float:
    """Mean of prediction minus truth: positive if the model estimates too much."""
    return _mean(prediction - truth)


def r2(truth: np.ndarray, prediction: np.ndarray) -> float:
    """Share of variance explained: 1 is perfect, 0 as good as the mean of the truth. NaN if the truth is constant."""
    if truth.size == 0 or np.ptp(truth) == 0:
        return float("nan")
    return 1 - float(((prediction - truth) ** 2).sum() / ((truth - truth.mean()) ** 2).sum())


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")
