"""Pasika's committee: stacking against a general optimiser, out-of-fold honesty, silent sensors, the mixture's law."""

import warnings

import numpy as np
import pytest
from scipy.optimize import minimize

from terramoe.data.simulators.cloud_base import cloud_base_table
from terramoe.errors import ConfigError
from terramoe.mixtures.rbf_network import RBFNetworkRegressor
from terramoe.mixtures.stacking import AveragedExperts, simplex_weights
from terramoe.systems.pasika import COMBINERS, EXPERTS, PasikaCommittee


@pytest.fixture(scope="module")
def table():
    return PasikaCommittee.tiny_table(150, 0)


@pytest.fixture(scope="module")
def fitted(table):
    return PasikaCommittee.tiny().fit(*table)


@pytest.mark.parametrize("seed", range(5))
def test_stacking_weights_are_the_best_on_the_simplex(seed):
    rng = np.random.default_rng(seed)
    y = rng.normal(size=50)
    predictions = (
        y[:, None] + rng.normal(size=(50, 4)) * rng.uniform(0.3, 2, 4) + rng.normal(size=(50, 1)) * [1, 1, 0, 0]
    )
    found = simplex_weights(predictions, y)
    assert (found >= 0).all()
    assert found.sum() == pytest.approx(1)
    constraint = {"type": "eq", "fun": lambda w: w.sum() - 1}
    oracle = minimize(
        lambda w: ((y - predictions @ w) ** 2).sum(), np.full(4, 0.25), bounds=[(0, 1)] * 4, constraints=constraint,
        options={"ftol": 1e-14, "maxiter": 500},
    )  # fmt: skip
    np.testing.assert_allclose(found, oracle.x, atol=1e-4)
    assert ((y - predictions @ found) ** 2).sum() <= oracle.fun * (1 + 1e-9)


def test_stacking_gives_all_to_an_expert_without_error_and_survives_twins():
    rng = np.random.default_rng(0)
    y = rng.normal(size=20)
    assert simplex_weights(np.column_stack([y + 1, y, 2 * y]), y) == pytest.approx([0, 1, 0])
    assert simplex_weights(np.column_stack([y, y]), y).sum() == pytest.approx(1)
    twins = np.column_stack([y + 0.1, y + 0.1])
    assert simplex_weights(twins, y).sum() == pytest.approx(1)


def test_out_of_fold_predictions_come_from_experts_that_have_not_seen_the_row():
    """With noise alone and experts that can learn it by heart, errors on seen rows would be small."""
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(60, 2)), rng.normal(size=60)
    system = PasikaCommittee.tiny().set_params(rbf_ridge=1e-6, svr_c=1e4, svr_epsilon=0.0).fit(X, y)
    seen = np.sqrt(np.mean((system.predict_experts(X) - y[:, None]) ** 2, axis=0))
    assert seen[0] < 0.6 < 0.9 < system.expert_std_[0]


def test_rows_of_a_group_share_a_fold():
    """Each row comes twice; only groups keep the copy out of the training rows."""
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(40, 3)), rng.normal(size=40)
    X, y, groups = np.repeat(X, 2, axis=0), np.repeat(y, 2), np.repeat(np.arange(40), 2)
    sharp = PasikaCommittee.tiny().set_params(rbf_ridge=1e-6, folds=8, kalman_epochs=1, descent_epochs=1)
    leaky, honest = (np.median(np.abs(sharp.fit(X, y, names).out_of_fold_[:, 0] - y)) for names in (None, groups))
    assert leaky < 0.1 < 0.5 < honest


def test_mean_and_deviation_are_those_of_the_mixture(fitted, table):
    X, _ = table
    weights, means = fitted.routing(X)["committee"].dense().numpy(), fitted.predict_experts(X)
    np.testing.assert_allclose(fitted.predict(X), (weights * means).sum(axis=1))
    second = (weights * (fitted.expert_std_**2 + means**2)).sum(axis=1)
    np.testing.assert_allclose(fitted.predict_std(X) ** 2, second - fitted.predict(X) ** 2)


@pytest.mark.parametrize("combiner", COMBINERS)
def test_recombining_is_fitting_with_that_combiner(fitted, table, combiner):
    again = PasikaCommittee.tiny().set_params(combiner=combiner).fit(*table)
    np.testing.assert_array_equal(fitted.recombine(combiner, *table).predict(table[0]), again.predict(table[0]))
    assert fitted.combiner == "nnls"


def test_the_dense_control_is_the_expert_of_least_out_of_fold_error(fitted, table):
    best = fitted.recombine("best", *table)
    np.testing.assert_allclose(
        best.predict(table[0]), fitted.predict_experts(table[0])[:, fitted.expert_std_.argmin()], atol=1e-12
    )
    assert best.routing(table[0])["committee"].dense().numpy().max(axis=1) == pytest.approx(1)


def test_stacking_cannot_do_worse_out_of_fold_than_any_constant_weights(fitted, table):
    y = table[1]
    heights = {
        name: np.mean((fitted.out_of_fold_ @ fitted.recombine(name, *table).weights_ - y) ** 2)
        for name in ("nnls", "best", "uniform", "random")
    }
    assert min(heights, key=heights.get) == "nnls"


def test_the_gate_follows_the_region_where_an_expert_is_good():
    """Out-of-fold errors that depend on the sign of a sensor are all that the gate is told."""
    X, y = PasikaCommittee.tiny_table(150, 0)
    system = PasikaCommittee.tiny().fit(X, y)
    left = X[:, 0] < 0
    system.out_of_fold_ = y[:, None] + np.where(left[:, None], [0.01, 1, 1, 1], [1, 0.01, 1, 1])
    system.expert_std_ = np.full(4, 0.3)
    weights = system.recombine("gate", X, y).routing(X)["committee"].dense().numpy()
    assert weights[left, 0].mean() > 0.85
    assert weights[~left, 1].mean() > 0.85


def test_a_silent_sensor_is_the_median_of_its_training_rows(fitted, table):
    X = table[0][:3].copy()
    X[0, 2] = np.nan
    filled = X.copy()
    filled[0, 2] = np.median(table[0][:, 2])
    np.testing.assert_array_equal(fitted.predict(X), fitted.predict(filled))


def test_sensors_that_were_never_heard_do_not_harm():
    X, y, _ = cloud_base_table(80, 0, missing=0.05)
    X[:, 7] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = PasikaCommittee.tiny().fit(X, y).predict(np.full((2, 57), np.nan))
    assert np.isfinite(found).all()


def test_experts_are_free_of_units(table):
    X, y = table
    bank = AveragedExperts([[RBFNetworkRegressor()], [RBFNetworkRegressor(), RBFNetworkRegressor(ridge=2)]])
    plain = bank.fit(X, y).predict(X)
    scaled = bank.fit(1000 * X - 3, 50 * y + 7).predict(1000 * X - 3)
    np.testing.assert_allclose(scaled, 50 * plain + 7, atol=1e-6)
    assert plain.shape == (150, 2)


def test_each_network_of_a_committee_starts_elsewhere(table):
    system = PasikaCommittee.tiny().set_params(networks=3).fit(*table)
    for expert in system.experts_.fitted_[2:]:
        assert len({one.random_state for one in expert}) == 3
        answers = np.stack([one.predict(system.experts_.scale(table[0])) for one in expert])
        assert answers.std(axis=0).mean() > 1e-3
    assert system.expert_names("committee") == EXPERTS


@pytest.mark.parametrize(
    ("setting", "value"),
    [("combiner", "mean"), ("hidden", 0), ("networks", 0), ("folds", 1), ("svr_c", 0), ("svr_epsilon", -1),
     ("learning_rate", 0), ("descent_epochs", 0), ("gate_ridge", -1), ("rbf_ridge", 0), ("kalman_epochs", 0)],
)  # fmt: skip
def test_a_setting_that_cannot_be_is_refused(table, setting, value):
    with pytest.raises(ConfigError):
        PasikaCommittee.tiny().set_params(**{setting: value}).fit(*table)


def test_one_group_leaves_nothing_to_hold_out(table):
    with pytest.raises(ValueError, match="hold out"):
        PasikaCommittee.tiny().fit(*table, groups=np.zeros(150))


def test_there_is_no_wide_control(fitted):
    with pytest.raises(ConfigError, match="wide"):
        fitted.control("wide")
