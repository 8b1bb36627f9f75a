"""Regularised RBF network: closed forms, kernel ridge regression as the oracle, and scikit-learn's checks."""

import numpy as np
import pytest
from sklearn.kernel_ridge import KernelRidge
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.utils.estimator_checks import parametrize_with_checks

from terramoe.errors import ConfigError
from terramoe.mixtures.rbf_network import RBFNetworkRegressor


@parametrize_with_checks([RBFNetworkRegressor(), RBFNetworkRegressor(60)])
def test_sklearn(estimator, check):
    check(estimator)


def table(rows=80, columns=3, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(rows, columns))
    return X, 5 + np.sin(2 * X[:, 0]) + 0.1 * rng.normal(size=rows)


@pytest.mark.parametrize("ridge", [1e-3, 0.5])
def test_with_a_centre_on_every_sample_it_is_kernel_ridge_regression(ridge):
    X, y = table()
    ours = RBFNetworkRegressor(gamma=0.7, ridge=ridge).fit(X, y)
    oracle = KernelRidge(alpha=ridge, kernel="rbf", gamma=0.7).fit(X, y - y.mean())
    new = table(seed=1)[0]
    np.testing.assert_allclose(ours.predict(new), y.mean() + oracle.predict(new), atol=1e-9)
    assert ours.stored_numbers == X.size + len(X)


def test_the_generalised_solution_on_all_samples_is_the_same():
    X, y = table(30)
    exact = RBFNetworkRegressor(gamma=0.7, ridge=0.3).fit(X, y)
    basis = rbf_kernel(X, gamma=0.7)
    weights = np.linalg.solve(basis.T @ basis + 0.3 * basis, basis.T @ (y - y.mean()))
    np.testing.assert_allclose(exact.weights_, weights, atol=1e-6)


def test_fewer_centres_minimise_the_penalised_error():
    X, y = table()
    found = RBFNetworkRegressor(9, gamma=0.4, ridge=0.2, random_state=0).fit(X, y)
    basis, inner = rbf_kernel(X, found.centres_, gamma=0.4), rbf_kernel(found.centres_, gamma=0.4)

    def height(weights):
        return ((y - y.mean() - basis @ weights) ** 2).sum() + 0.2 * weights @ inner @ weights

    slope = 2 * basis.T @ (basis @ found.weights_ - (y - y.mean())) + 2 * 0.2 * inner @ found.weights_
    np.testing.assert_allclose(slope, 0, atol=1e-8)
    rng = np.random.default_rng(0)
    assert all(height(found.weights_) < height(found.weights_ + 0.1 * rng.normal(size=9)) for _ in range(20))
    assert found.stored_numbers == 9 * 3 + 9


def test_far_from_all_centres_it_says_the_mean():
    X, y = table()
    assert RBFNetworkRegressor().fit(X, y).predict(np.full((1, 3), 1e6))[0] == y.mean()


def test_two_equal_samples_and_equal_columns_are_no_problem():
    X, y = np.ones((6, 2)), np.arange(6.0)
    np.testing.assert_allclose(RBFNetworkRegressor().fit(X, y).predict(X), 2.5)
    np.testing.assert_allclose(RBFNetworkRegressor(1, random_state=0).fit(X, y).predict(X), 2.5)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("ridge", 0), ("ridge", -1), ("ridge", np.nan), ("gamma", 0), ("gamma", "wide"), ("centres", 0), ("centres", 2.5),
     ("centres", True)],
)  # fmt: skip
def test_a_setting_that_cannot_be_is_named(setting, value):
    with pytest.raises(ConfigError, match=setting):
        RBFNetworkRegressor(**{setting: value}).fit(*table())
