"""A radial basis function network with a smoothness penalty.

Networks for approximation and learning, 1990, DOI 10.1109/5.58326. With a centre on every sample it is the
regularisation network, which stores all of its training data; with fewer centres it is the generalised one:

    f(x) = mean + sum_c w_c exp(-gamma |x - t_c|^2),   w = argmin |y - G w|^2 + ridge w' G0 w

G (n, C) are the basis functions at the samples and G0 (C, C) those at the centres. With centres = samples the solution
is (G + ridge I)^-1 y.
"""

from __future__ import annotations

from numbers import Real

import numpy as np
from scipy.linalg import solve
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.cluster import KMeans
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.utils.validation import check_is_fitted, validate_data

from terramoe.errors import ConfigError


class RBFNetworkRegressor(RegressorMixin, BaseEstimator):
    """See the module's docstring. Give columns of comparable scale: one width serves all.

    Args:
        centres: how many, placed by k-means; None puts one on every sample.
        gamma: 1 / (2 width^2); None takes 1 / (columns x variance of X), as scikit-learn's SVR does.
        ridge: weight of the penalty, above 0, in units of y^2.
        random_state: seed or numpy RandomState of k-means.

    Attributes:
        centres_: (C, D). weights_: (C,). mean_: of y. gamma_: in use.
    """

    def __init__(
        self,
        centres: int | None = None,
        *,
        gamma: float | None = None,
        ridge: float = 0.1,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.centres = centres
        self.gamma = gamma
        self.ridge = ridge
        self.random_state = random_state

    def fit(self, X: np.ndarray, y: np.ndarray) -> RBFNetworkRegressor:
        """X (n, D) and y (n,).

        Raises:
            ConfigError: a setting that cannot be. ValueError: NaN, or X and y of different length.
        """
        self._check_settings()
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True)
        spread = X.var()
        self.gamma_ = self.gamma or 1 / (X.shape[1] * (spread if spread > 0 else 1.0))
        self.mean_ = float(y.mean())
        self.centres_ = self._place(X)
        basis = rbf_kernel(X, self.centres_, gamma=self.gamma_)
        if self.centres_ is X:
            self.weights_ = solve(basis + self.ridge * np.eye(len(X)), y - self.mean_, assume_a="pos")
            return self
        values, vectors = np.linalg.eigh(rbf_kernel(self.centres_, gamma=self.gamma_))
        penalty = np.sqrt(self.ridge * np.maximum(values, 0))[:, None] * vectors.T  # penalty' penalty = ridge G0
        rows = np.concatenate([basis, penalty])
        target = np.concatenate([y - self.mean_, np.zeros(len(penalty))])
        self.weights_ = np.linalg.lstsq(rows, target)[0]
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        """(n,)."""
        check_is_fitted(self, "weights_")
        X = validate_data(self, X, dtype=np.float64, reset=False)
        return self.mean_ + rbf_kernel(X, self.centres_, gamma=self.gamma_) @ self.weights_

    @property
    def stored_numbers(self) -> int:
        """How many numbers a prediction needs: C centres of D columns, and a weight each."""
        check_is_fitted(self, "weights_")
        return self.centres_.size + self.weights_.size

    def _place(self, X: np.ndarray) -> np.ndarray:
        if self.centres is None or self.centres >= len(X):
            return X
        return KMeans(self.centres, n_init=1, random_state=self.random_state).fit(X).cluster_centers_

    def _check_settings(self) -> None:
        whole = isinstance(self.centres, int | np.integer) and not isinstance(self.centres, bool)
        for holds, name, fix in (
            (self.centres is None or (whole and self.centres >= 1), "centres", "use a whole number >= 1, or None"),
            (self.gamma is None or _positive(self.gamma), "gamma", "use a number above 0, or None"),
            (_positive(self.ridge), "ridge", "use a number above 0: without it the weights are not unique"),
        ):
            if not holds:
                raise ConfigError(f"{name} is {getattr(self, name)!r}", where="RBFNetworkRegressor", fix=fix)


def _positive(value: object) -> bool:
    return isinstance(value, Real) and 0 < value < np.inf
