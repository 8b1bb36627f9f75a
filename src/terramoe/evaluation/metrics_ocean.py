"""Scores of positive quantities over orders of magnitude, as ocean colour has them: chlorophyll, absorption.

All take truth and prediction of one shape, all above 0: what is not raises an error instead of being left out, which
would flatter a model that predicts nonsense where it errs most.
"""

from __future__ import annotations

import numpy as np

from terramoe.errors import DataError


def median_symmetric_accuracy(truth: np.ndarray, prediction: np.ndarray) -> float:
    """MdSA, percent: 100 (exp(median |ln(prediction / truth)|) - 1). 0 is perfect; twice and half as much both are 100.

    Measures of model performance based on the log accuracy ratio, 2018, doi:10.1002/2017SW001669. In spite of its name
    an error: lower is better. (No angle between derivatives of spectra, as one README has it.)
    """
    truth, prediction = _positive(truth, prediction)
    return float(100 * np.expm1(np.median(np.abs(np.log(prediction / truth)))))


def symmetric_bias(truth: np.ndarray, prediction: np.ndarray) -> float:
    """Symmetric signed percentage bias of the same paper: as MdSA, of the median without the bars, with its sign."""
    truth, prediction = _positive(truth, prediction)
    middle = np.median(np.log(prediction / truth))
    return float(100 * np.sign(middle) * np.expm1(np.abs(middle)))


def relative_rmse(truth: np.ndarray, prediction: np.ndarray) -> float:
    """Root mean square of (prediction - truth) / truth, no unit: 1.11 means errors of 111 %.

    Some papers call it NRMSE, a name that others have for the RMSE over the range or the mean of the truth.
    """
    truth, prediction = _positive(truth, prediction)
    return float(np.sqrt(np.mean(((prediction - truth) / truth) ** 2)))


def log_log_slope(truth: np.ndarray, prediction: np.ndarray) -> float:
    """Slope of the least-squares line of log(prediction) on log(truth); 1 is perfect, below 1 extremes are lost.

    NaN where the truth is constant.
    """
    truth, prediction = (np.log(values).ravel() for values in _positive(truth, prediction))
    away = truth - truth.mean()
    if np.ptp(truth) == 0:
        return float("nan")
    return float(away @ (prediction - prediction.mean()) / (away @ away))


def _positive(truth: np.ndarray, prediction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    truth, prediction = np.asarray(truth, dtype=np.float64), np.asarray(prediction, dtype=np.float64)
    if truth.shape != prediction.shape or truth.size == 0:
        raise DataError(
            f"truth {truth.shape} and prediction {prediction.shape}",
            where="metrics_ocean",
            fix="give both in one shape, with at least one value",
        )
    for name, values in (("truth", truth), ("prediction", prediction)):
        if not (np.isfinite(values) & (values > 0)).all():
            raise DataError(
                f"{name} has values that are not above 0 or not finite",
                where="metrics_ocean",
                fix="choose what to do with them before scoring, and say so",
            )
    return truth, prediction
