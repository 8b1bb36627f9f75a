"""The estimators: one expert, the tree, planted parameters, the routing record, hostile input."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LinearRegression, LogisticRegression, PoissonRegressor

from terramoe.errors import ConfigError, RoutingError
from terramoe.mixtures import (
    HierarchicalMixtureClassifier,
    HierarchicalMixtureRegressor,
    MixtureOfExpertsClassifier,
    MixtureOfExpertsRegressor,
)
from terramoe.moe.routing import Routing

REGRESSORS = (MixtureOfExpertsRegressor, HierarchicalMixtureRegressor)
CLASSIFIERS = (MixtureOfExpertsClassifier, HierarchicalMixtureClassifier)
SLOPES, SHIFTS = np.array([3.0, -2.0]), np.array([1.0, 4.0])


def planted(n=3000, seed=0, poisson=False):
    """Two experts, gate logit 4 x - 1 for the second, noise 0.3 and 0.6."""
    rng = np.random.default_rng(seed)
    X = rng.uniform(-2, 2, size=(n, 1))
    which = (rng.random(n) < 1 / (1 + np.exp(1 - 4 * X[:, 0]))).astype(int)
    if poisson:
        return X, rng.poisson(np.exp(0.5 * SLOPES[which] * X[:, 0] + SHIFTS[which])).astype(float)
    return X, SLOPES[which] * X[:, 0] + SHIFTS[which] + np.array([0.3, 0.6])[which] * rng.normal(size=n)


def classes(n=300, count=3, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 2))
    return X, np.array(list("abcd"))[np.digitize(X[:, 0] * X[:, 1] + 0.3 * rng.normal(size=n), [0, 0.5][: count - 1])]


def test_planted_parameters_are_recovered_up_to_the_order():
    X, y = planted()
    model = MixtureOfExpertsRegressor(2, ridge=0, random_state=0).fit(X, y)
    order = np.argsort(-model.coef_[:, 0])
    np.testing.assert_allclose(model.coef_[order, 0], SLOPES, atol=0.1)
    np.testing.assert_allclose(model.intercept_[order], SHIFTS, atol=0.1)
    np.testing.assert_allclose(model.variance_[order], [0.09, 0.36], rtol=0.15)
    gate = model.gate_coef_[order, 0], model.gate_intercept_[order]
    assert gate[0][1] - gate[0][0] == pytest.approx(4, abs=0.5)
    assert gate[1][1] - gate[1][0] == pytest.approx(-1, abs=0.25)


def test_planted_poisson_experts_are_recovered():
    X, y = planted(poisson=True)
    model = MixtureOfExpertsRegressor(2, expert="poisson", ridge=0, random_state=0).fit(X, y)
    order = np.argsort(-model.coef_[:, 0])
    np.testing.assert_allclose(model.coef_[order, 0], 0.5 * SLOPES, atol=0.1)
    np.testing.assert_allclose(model.intercept_[order], SHIFTS, atol=0.1)


def test_planted_logistic_experts_are_recovered():
    """Experts that are not each other's mirror image: those could change places with the gate."""
    rng = np.random.default_rng(1)
    X, experts = rng.normal(size=(12000, 2)), np.array([[0.0, -3.0, 1.0], [1.0, 3.0, 1.0]])
    second = rng.random(12000) < 1 / (1 + np.exp(-5 * X[:, 0]))
    logits = X @ experts[:, :2].T + experts[:, 2]
    y = rng.random(12000) < 1 / (1 + np.exp(-np.where(second, logits[:, 1], logits[:, 0])))
    model = MixtureOfExpertsClassifier(2, ridge=0, tol=1e-7, n_init=2, random_state=0).fit(X, y)
    coef = np.stack([model.scaling_.undo(expert.coef) for expert in model.mixture_.experts])
    np.testing.assert_allclose(coef[np.argsort(coef[:, 1])], experts, atol=0.4)


@pytest.mark.parametrize("gate", ["softmax", "gaussian"])
def test_one_gaussian_expert_is_linear_regression(gate):
    X, y = planted(200)
    weight = np.random.default_rng(0).random(200)
    model = MixtureOfExpertsRegressor(1, gate=gate, ridge=0).fit(X, y, weight)
    oracle = LinearRegression().fit(X, y, weight)
    np.testing.assert_allclose(model.predict(X), oracle.predict(X), atol=1e-9)
    assert model.score(X, y) == pytest.approx(oracle.score(X, y))


def test_one_poisson_expert_is_poisson_regression():
    X, y = planted(200, poisson=True)
    model = MixtureOfExpertsRegressor(1, expert="poisson", ridge=0, tol=1e-12).fit(X, y)
    oracle = PoissonRegressor(alpha=0, tol=1e-10, solver="newton-cholesky").fit(X, y)
    np.testing.assert_allclose(model.predict(X), oracle.predict(X), rtol=1e-6)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_one_expert_is_logistic_regression(kind, count):
    X, y = classes(count=count)
    size = 1 if kind is MixtureOfExpertsClassifier else (1, 1)
    model = kind(size, ridge=0, tol=1e-13).fit(X, y)
    oracle = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(X, y)
    np.testing.assert_array_equal(model.classes_, oracle.classes_)
    np.testing.assert_allclose(model.predict_proba(X), oracle.predict_proba(X), atol=1e-5)


def test_flat_mixture_is_the_tree_with_one_branch():
    X, y = planted(300)
    flat = MixtureOfExpertsRegressor(3, random_state=4).fit(X, y)
    tree = HierarchicalMixtureRegressor((1, 3), random_state=4).fit(X, y)
    np.testing.assert_allclose(tree.predict(X), flat.predict(X), rtol=1e-6)
    np.testing.assert_allclose(tree.log_likelihood(X, y), flat.log_likelihood(X, y), rtol=1e-6, atol=1e-8)
    X, y = classes()
    flat = MixtureOfExpertsClassifier(3, random_state=4).fit(X, y)
    tree = HierarchicalMixtureClassifier((1, 3), random_state=4).fit(X, y)
    np.testing.assert_allclose(tree.predict_proba(X), flat.predict_proba(X), atol=1e-6)


def test_tree_posterior_is_the_product_of_its_levels():
    X, y = planted(200)
    model = HierarchicalMixtureRegressor((2, 3), random_state=0, n_init=1).fit(X, y)
    tree, design = model.mixture_.gate, model.scaling_.apply(X)
    target = (y - model.target_mean_) / model.target_scale_
    g, p = np.exp(tree.top.log_score(design)), np.exp(model.mixture_.expert_log_prob(design, target))
    joint = np.stack([np.exp(gate.log_score(design)) * p[:, 3 * i : 3 * i + 3] for i, gate in enumerate(tree.lower)], 1)
    branch = g * joint.sum(2)
    h = (branch / branch.sum(1, keepdims=True))[..., None] * joint / joint.sum(2, keepdims=True)
    np.testing.assert_allclose(model.responsibilities(X, y), h.reshape(200, 6), atol=1e-10)
    np.testing.assert_allclose(h.sum((1, 2)), 1)


def test_likelihood_is_in_the_unit_of_y():
    X, y = planted(300)
    kinds = {"random_state": 0, "ridge": 0}
    plain = MixtureOfExpertsRegressor(2, **kinds).fit(X, y)
    scaled = MixtureOfExpertsRegressor(2, **kinds).fit(100 * X + 3, 10 * y - 7)
    np.testing.assert_allclose(scaled.predict(100 * X + 3), 10 * plain.predict(X) - 7, rtol=1e-5, atol=1e-5)
    likelihood = scaled.log_likelihood(100 * X + 3, 10 * y - 7)
    np.testing.assert_allclose(likelihood, plain.log_likelihood(X, y) - np.log(10), atol=1e-5)


def test_density_of_the_estimator_integrates_to_one():
    X, y = planted(300)
    model = MixtureOfExpertsRegressor(3, random_state=0).fit(X, y)
    grid = np.linspace(-40, 40, 40001)
    for at in (-2.0, 0.3, 5.0):
        density = np.exp(model.log_likelihood(np.full((len(grid), 1), at), grid))
        assert np.trapezoid(density, grid) == pytest.approx(1, abs=1e-6)
        np.testing.assert_allclose(np.trapezoid(density * grid, grid), model.predict([[at]])[0], atol=1e-4)


def test_classifier_likelihood_is_the_log_of_its_probability():
    X, y = classes()
    model = MixtureOfExpertsClassifier(2, random_state=0).fit(X, y)
    prob = model.predict_proba(X)
    np.testing.assert_allclose(prob.sum(1), 1, atol=1e-12)
    taken = prob[np.arange(len(y)), np.searchsorted(model.classes_, y)]
    np.testing.assert_allclose(model.log_likelihood(X, y), np.log(taken), atol=1e-10)
    assert model.score(X, y) == np.mean(model.predict(X) == y)


def test_a_mixture_beats_one_expert_where_there_are_two():
    X, y = classes(count=2, n=600)
    one = MixtureOfExpertsClassifier(1).fit(X, y).score(X, y)
    assert MixtureOfExpertsClassifier(2, random_state=0).fit(X, y).score(X, y) > one + 0.15


@pytest.mark.parametrize("gate", ["softmax", "gaussian"])
def test_routing_is_the_dense_record(gate):
    X, y = planted(50)
    model = MixtureOfExpertsRegressor(3, gate=gate, random_state=0, n_init=1).fit(X, y)
    routing = model.routing(X)
    assert isinstance(routing, Routing)
    assert (routing.num_items, routing.num_experts, routing.fixed_k) == (50, 3, 3)
    torch.testing.assert_close(routing.dense(), routing.probs)
    torch.testing.assert_close(routing.logits.softmax(-1), routing.probs)
    torch.testing.assert_close(routing.dense().sum(1), torch.ones(50, dtype=torch.float64))
    assert (routing.load() == 50).all()
    assert (routing.weight.view(3, 50).diff(dim=0) <= 0).all()
    torch.testing.assert_close(routing.top_expert(), routing.probs.argmax(1))
    tied = MixtureOfExpertsRegressor(1).fit(X, y).routing(X)
    assert (tied.weight == 1).all()


def test_same_seed_same_model_and_more_starts_are_no_worse():
    X, y = planted(200)
    one, again, more = (MixtureOfExpertsRegressor(3, n_init=n, random_state=1).fit(X, y) for n in (1, 1, 6))
    np.testing.assert_array_equal(one.predict(X), again.predict(X))
    assert more.objective_trace_[-1] >= one.objective_trace_[-1]


def test_warns_when_not_converged():
    X, y = planted(200)
    with pytest.warns(ConvergenceWarning, match="max_iter"):
        model = MixtureOfExpertsRegressor(3, max_iter=2, tol=0, random_state=0).fit(X, y)
    assert not model.converged_
    assert model.n_iter_ == 2


@pytest.mark.parametrize("kind", REGRESSORS + CLASSIFIERS)
def test_hostile_columns_and_far_predictions(kind):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 2))
    X = np.column_stack([x, x[:, 0], x.sum(1), np.full(80, 7.0), 1e-9 * x[:, 1], 1e9 * x[:, 0]])
    y = np.sin(2 * x[:, 0]) + x[:, 1] if kind in REGRESSORS else (x[:, 0] * x[:, 1] > 0).astype(int)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        models = [kind(random_state=0, n_init=1, ridge=ridge, max_iter=60).fit(X, y) for ridge in (0, 1e-2)]
    for model in models:
        assert (np.diff(model.objective_trace_) >= -1e-9 * (1 + np.abs(model.objective_trace_[:-1]))).all()
        for far in (1e3, 1e12, 1e200):
            predict = model.predict if kind in REGRESSORS else model.predict_proba
            for value in (far * X, -far * X):
                value = np.clip(value, -1e300, 1e300)
                assert np.isfinite(predict(value)).all()
                assert torch.isfinite(model.routing(value).probs).all()


@pytest.mark.parametrize("settings", [{"gate": "gaussian"}, {"expert": "poisson"}])
def test_far_predictions_of_other_parts(settings):
    X, y = planted(100, poisson=True)
    model = MixtureOfExpertsRegressor(3, random_state=0, **settings).fit(X, y)
    assert np.isfinite(model.predict([[1e12], [-1e12], [1e300]])).all()
    assert np.isfinite(model.responsibilities([[1e12], [-1e12]], [1.0, 2.0])).all()


def test_constant_target():
    X, _ = planted(50)
    model = MixtureOfExpertsRegressor(2, random_state=0).fit(X, np.full(50, 3.0))
    np.testing.assert_allclose(model.predict(X), 3.0, atol=1e-6)


@pytest.mark.parametrize("kind", REGRESSORS + CLASSIFIERS)
def test_bad_input_is_refused(kind):
    X, y = np.random.default_rng(0).normal(size=(20, 2)), np.arange(20) % 2
    with pytest.raises(ValueError, match="NaN"):
        kind().fit(np.where(X > 1.5, np.nan, X) if (X > 1.5).any() else X * np.nan, y)
    with pytest.raises(RoutingError, match="n_samples = 1 "):
        kind().fit(X[:1], y[:1])
    with pytest.raises(RoutingError, match="above 0"):
        kind().fit(X, y, np.where(np.arange(20) == 0, 1.0, 0.0))
    with pytest.raises(ConfigError, match="max_iter"):
        kind(max_iter=0).fit(X, y)
    with pytest.raises(ConfigError, match="ridge"):
        kind(ridge=-1.0).fit(X, y)


def test_other_settings_are_refused():
    X, y = planted(20)
    for bad, word in [({"gate": "tree"}, "gate"), ({"expert": "gamma"}, "expert"), ({"n_experts": 0}, "experts")]:
        with pytest.raises(ConfigError, match=word):
            MixtureOfExpertsRegressor(**bad).fit(X, y)
    for branching in ((0, 2), 4, (2, 2, 2)):
        with pytest.raises(ConfigError, match="branching"):
            HierarchicalMixtureRegressor(branching).fit(X, y)
    with pytest.raises(RoutingError, match="negative"):
        MixtureOfExpertsRegressor(expert="poisson").fit(X, y - 100)
    with pytest.raises(RoutingError, match="1 class"):
        MixtureOfExpertsClassifier().fit(X, np.zeros(20, dtype=int))
    model = MixtureOfExpertsClassifier(random_state=0).fit(X, y > y.mean())
    with pytest.raises(RoutingError, match="no class seen"):
        model.log_likelihood(X, np.full(20, 5))
