"""Node-decoupled Kalman training: recursive least squares, filterpy's extended filter, and what decoupling drops."""

import numpy as np
import pytest
from filterpy.kalman import ExtendedKalmanFilter
from sklearn.linear_model import LinearRegression
from sklearn.utils.estimator_checks import parametrize_with_checks

from terramoe.errors import ConfigError
from terramoe.mixtures.ndekf import NDEKFRegressor, kalman_step


@parametrize_with_checks([NDEKFRegressor(4, epochs=2, random_state=0)])
def test_sklearn(estimator, check):
    check(estimator)


def table(rows=60, columns=3, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(rows, columns))
    return X, np.tanh(X[:, 0] - X[:, 1]) + 0.5 * X[:, 2] + 0.05 * rng.normal(size=rows)


def start_of(**settings):
    """The weights before the first sample."""
    model = NDEKFRegressor(**settings)
    model._start(4, np.random.RandomState(0))
    return model.hidden_.copy(), model.output_.copy()


def answer(weights, x, hidden):
    first, last = weights[: 4 * hidden].reshape(hidden, 4), weights[4 * hidden :]
    return float(last @ np.append(np.tanh(first @ np.append(x, 1)), 1))


def numeric_slope(weights, x, hidden, step=1e-6):
    bumps = step * np.eye(len(weights))
    return np.array([(answer(weights + b, x, hidden) - answer(weights - b, x, hidden)) / (2 * step) for b in bumps])


def by_filterpy(X, y, hidden, order, noise, keep=None):
    """All weights in one extended Kalman filter with numerical slopes; ``keep`` masks its covariance at each step."""
    first, last = start_of(hidden=hidden)
    weights = np.concatenate([first.ravel(), last])
    judge = ExtendedKalmanFilter(dim_x=len(weights), dim_z=1)
    judge.x, judge.P = weights[:, None], 100 * np.eye(len(weights))
    for row, variance in zip(order, noise, strict=True):
        judge.R = np.array([[variance]])
        judge.update(
            np.array([[y[row]]]),
            lambda x, row=row: numeric_slope(x[:, 0], X[row], hidden)[None],
            lambda x, row=row: np.array([[answer(x[:, 0], X[row], hidden)]]),
        )
        if keep is not None:
            judge.P = judge.P * keep
    return judge.x[:, 0], judge.P


def replay(rows, epochs=1):
    random = np.random.RandomState(0)
    random.standard_normal((2, 4)), random.standard_normal(3)  # the start of two nodes on three columns
    return np.concatenate([random.permutation(rows) for _ in range(epochs)])


def test_all_weights_together_are_the_global_extended_filter():
    X, y = table()
    ours = NDEKFRegressor(2, epochs=1, groups="all", drift=0.0, noise=(1.0, 0.1), random_state=0).fit(X, y)
    weights, covariance = by_filterpy(X, y, 2, replay(60), np.geomspace(1.0, 0.1, 60))
    np.testing.assert_allclose(np.concatenate([ours.hidden_.ravel(), ours.output_]), weights, atol=1e-5)
    np.testing.assert_allclose(ours.covariances_[0][0], covariance, atol=1e-4)


def test_decoupling_drops_covariances_between_nodes_and_nothing_else():
    X, y = table()
    ours = NDEKFRegressor(2, epochs=1, drift=0.0, noise=(1.0, 0.1), random_state=0).fit(X, y)
    node = np.array([0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2])
    keep = node[:, None] == node
    weights, covariance = by_filterpy(X, y, 2, replay(60), np.geomspace(1.0, 0.1, 60), keep)
    np.testing.assert_allclose(np.concatenate([ours.hidden_.ravel(), ours.output_]), weights, atol=1e-5)
    for i in (0, 1):
        np.testing.assert_allclose(ours.covariances_[0][i], covariance[4 * i : 4 * i + 4, 4 * i : 4 * i + 4], atol=1e-4)
    coupled, _ = by_filterpy(X, y, 2, replay(60), np.geomspace(1.0, 0.1, 60))
    assert np.abs(coupled - weights).max() > 1e-2  # the two filters do differ


@pytest.mark.parametrize("groups", ["node", "all"])
def test_a_linear_network_has_one_node_and_is_recursive_least_squares(groups):
    X, y = table()
    found = NDEKFRegressor(0, epochs=1, groups=groups, drift=0.0, noise=(0.3, 0.3), covariance=50.0).fit(X, y)
    X1 = np.column_stack([X, np.ones(60)])
    precision = X1.T @ X1 / 0.3 + np.eye(4) / 50
    np.testing.assert_allclose(found.output_, np.linalg.solve(precision, X1.T @ y / 0.3), atol=1e-9)
    np.testing.assert_allclose(found.covariances_[-1][0], np.linalg.inv(precision), atol=1e-9)


def test_a_wide_prior_and_little_noise_make_it_least_squares():
    X, y = table()
    found = NDEKFRegressor(0, epochs=1, drift=0.0, noise=(1e-3, 1e-3), covariance=1e6).fit(X, y)
    np.testing.assert_allclose(found.predict(X), LinearRegression().fit(X, y).predict(X), atol=1e-6)


def test_a_step_keeps_covariances_symmetric_and_shrinks_them():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(3, 5, 5))
    before = root @ root.transpose(0, 2, 1)
    before = (before + before.transpose(0, 2, 1)) / 2
    P = before.copy()
    moves = kalman_step([P], [rng.normal(size=(3, 5))], 0.7, 0.1, 0.0)
    np.testing.assert_array_equal(P, P.transpose(0, 2, 1))
    assert (np.linalg.eigvalsh(P) > 0).all()
    assert (np.linalg.eigvalsh(before - P) > -1e-12).all()
    assert moves[0].shape == (3, 5)


def test_drift_is_added_to_every_weight_and_no_covariance():
    P = np.tile(np.eye(2), (1, 1, 1))
    kalman_step([P], [np.zeros((1, 2))], 1.0, 0.1, 0.25)
    np.testing.assert_array_equal(P[0], 1.25 * np.eye(2))


def test_it_learns_what_a_linear_model_cannot_and_the_curve_is_that_of_the_training_rows():
    X, y = table(300)
    y = (y - y.mean()) / y.std()
    model = NDEKFRegressor(6, epochs=5, random_state=0).fit(X, y)
    line = LinearRegression().fit(X, y)
    new, truth = table(300, seed=1)
    truth = (truth - truth.mean()) / truth.std()
    assert np.mean((model.predict(new) - truth) ** 2) < 0.6 * np.mean((line.predict(new) - truth) ** 2)
    assert model.loss_curve_.shape == (5,)
    assert model.loss_curve_[-1] == pytest.approx(np.mean((model.predict(X) - y) ** 2))


@pytest.mark.parametrize(
    ("setting", "value"),
    [("hidden", -1), ("epochs", 0), ("groups", "layer"), ("covariance", 0), ("noise", 0.1), ("noise", (1, 0)),
     ("drift", -1), ("start", 0)],
)  # fmt: skip
def test_a_setting_that_cannot_be_is_named(setting, value):
    with pytest.raises(ConfigError, match=setting):
        NDEKFRegressor(**{setting: value}).fit(*table())
