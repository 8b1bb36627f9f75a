"""Stacking: experts of any kind under one scaling, and the weights that their out-of-fold predictions ask for.

Stacked generalization, 1992, DOI 10.1016/S0893-6080(05)80023-1; weights that are not negative: Stacked regressions,
1996, DOI 10.1007/BF00117832.
"""

from __future__ import annotations

import warnings
from typing import Self

import numpy as np
from scipy.optimize import nnls
from sklearn.base import BaseEstimator, clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.preprocessing import StandardScaler
from sklearn.utils import check_random_state


class AveragedExperts(BaseEstimator):
    """Experts of any kind on imputed, standardised rows and a standardised target.

    Args:
        members: per expert its unfitted regressors, which are averaged.
        seed: of those that have a ``random_state``, each its own.

    Attributes:
        fitted_: the same lists, fitted. fill_: (D,) medians of X, which stand where a value is missing.
    """

    def __init__(self, members: list[list[BaseEstimator]], seed: int = 0) -> None:
        self.members = members
        self.seed = seed

    def fit(self, X: np.ndarray, y: np.ndarray) -> Self:
        """X (n, D), NaN where missing, and y (n,)."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="All-NaN slice")
            self.fill_ = np.nan_to_num(np.nanmedian(X, axis=0))  # a sensor that was never heard says 0
        self.scaler_ = StandardScaler().fit(np.where(np.isnan(X), self.fill_, X))
        design = self.scale(X)
        self.mean_, self.unit_ = float(y.mean()), float(y.std()) or 1.0
        target, random = (y - self.mean_) / self.unit_, check_random_state(self.seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # epochs are a budget here, and batches may be small
            warnings.filterwarnings("ignore", message="Got `batch_size`")
            self.fitted_ = [[_fitted(one, random, design, target) for one in expert] for expert in self.members]
        return self

    def scale(self, X: np.ndarray) -> np.ndarray:
        """(n, D) as the experts see it."""
        return self.scaler_.transform(np.where(np.isnan(X), self.fill_, X))

    def predict(self, X: np.ndarray) -> np.ndarray:
        """(n, experts) in the unit of y."""
        design = self.scale(X)
        columns = [np.mean([one.predict(design) for one in expert], axis=0) for expert in self.fitted_]
        return self.mean_ + self.unit_ * np.stack(columns, axis=1)


def _fitted(
    estimator: BaseEstimator, random: np.random.RandomState, design: np.ndarray, target: np.ndarray
) -> BaseEstimator:
    seed, twin = random.randint(2**31 - 1), clone(estimator)
    if "random_state" in twin.get_params():
        twin.set_params(random_state=seed)
    twin.fit(design, target)
    vars(twin).pop("_optimizer", None)  # scikit-learn's perceptrons keep it; skops would not trust it in a file
    return twin


def simplex_weights(predictions: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(E,) the weights >= 0 of sum 1 that minimise |y - predictions w|^2; predictions (n, E).

    With sum 1 the error is R w, R = predictions - y. Non-negative least squares on R under a row of ones, with targets
    0 and 1, gives a multiple of the same w: over the scale s of s w, |s R w|^2 + (s - 1)^2 is least at
    |R w|^2 / (1 + |R w|^2), which grows with |R w|^2.
    """
    errors = predictions - y[:, None]
    unit = np.linalg.norm(errors) or 1.0
    rows = np.concatenate([errors / unit, np.ones((1, errors.shape[1]))])
    found = nnls(rows, np.append(np.zeros(len(errors)), 1.0))[0]
    return found / found.sum()
