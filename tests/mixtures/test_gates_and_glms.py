"""Gates and experts one by one: gradients, invariances, densities, and M-steps against scikit-learn."""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import check_grad
from scipy.stats import multivariate_normal
from sklearn.linear_model import LinearRegression, LogisticRegression, PoissonRegressor

from terramoe.mixtures.em import Mixture
from terramoe.mixtures.experts import BernoulliExpert, GaussianExpert, MultinomialExpert, PoissonExpert
from terramoe.mixtures.gating import GaussianGate, SoftmaxGate, floor_eigenvalues, gate_log_proba
from terramoe.mixtures.newton import newton_ascent
from terramoe.mixtures.scaling import Scaling
from terramoe.mixtures.softmax_regression import softmax_derivatives, softmax_value, with_ones
from terramoe.mixtures.tree import TreeGate

RNG = np.random.default_rng(0)
X = RNG.normal(size=(120, 3))
WEIGHT = RNG.choice([0.0, 0.5, 1.0, 3.0], size=120)
SOFT = RNG.dirichlet([0.6, 1.0, 2.0], size=120)
COEF = RNG.normal(size=(4, 3))


def test_softmax_derivatives_against_finite_differences():
    problem = (X, SOFT, WEIGHT, 0.3)

    def value(flat):
        return softmax_value(flat.reshape(4, 3), *problem)

    def gradient(flat):
        return softmax_derivatives(flat.reshape(4, 3), *problem)[0]

    assert check_grad(value, gradient, COEF.ravel()) < 1e-4
    curvature = softmax_derivatives(COEF, *problem)[1]
    step = 1e-5
    columns = [(gradient(COEF.ravel() + step * e) - gradient(COEF.ravel() - step * e)) / (2 * step) for e in np.eye(12)]
    np.testing.assert_allclose(-np.stack(columns, 1), curvature, atol=1e-6)


def test_gate_gradient_vanishes_at_convergence():
    gate = SoftmaxGate(np.zeros((4, 3)), steps=50).fit_step(X, SOFT, WEIGHT)
    residual = SOFT - np.exp(gate.log_score(X))
    np.testing.assert_allclose(with_ones(X).T @ (WEIGHT[:, None] * residual), 0, atol=1e-6)


def test_each_gate_step_raises_its_bound():
    gate, previous = SoftmaxGate(5 * COEF), -np.inf
    for _ in range(10):
        value = softmax_value(gate.coef, X, SOFT, WEIGHT, 0.0)
        assert value >= previous
        previous, gate = value, gate.fit_step(X, SOFT, WEIGHT)


def test_newton_finds_the_top_and_stays_there():
    centre = np.array([1.0, -2.0])
    peak = newton_ascent(
        lambda p: -((p - centre) ** 2).sum(), lambda p: (-2 * (p - centre), 2 * np.eye(2)), centre * 0, 2
    )
    np.testing.assert_allclose(peak, centre, atol=1e-9)
    again = newton_ascent(lambda p: -((p - centre) ** 2).sum(), lambda p: (-2 * (p - centre), 2 * np.eye(2)), centre, 3)
    np.testing.assert_array_equal(again, centre)


def test_translation_and_permutation_leave_the_softmax_gate_alone():
    gate = SoftmaxGate(COEF)
    shifted = SoftmaxGate(COEF + RNG.normal(size=(4, 1)))
    np.testing.assert_allclose(gate.log_score(X), shifted.log_score(X), atol=1e-12)
    order = [2, 0, 1]
    np.testing.assert_allclose(SoftmaxGate(COEF[:, order]).log_score(X), gate.log_score(X)[:, order], atol=1e-12)


def test_relabelling_the_experts_leaves_the_likelihood_alone():
    experts = tuple(GaussianExpert(RNG.normal(size=4), variance) for variance in (0.5, 1.0, 2.0))
    order, y = [2, 0, 1], RNG.normal(size=120)
    mixture = Mixture(SoftmaxGate(COEF), experts)
    relabelled = Mixture(SoftmaxGate(COEF[:, order] + 7.0), tuple(experts[i] for i in order))
    np.testing.assert_allclose(mixture.log_likelihood(X, y), relabelled.log_likelihood(X, y), atol=1e-12)


def test_gaussian_gate_against_the_formula_and_its_closed_form():
    gate = GaussianGate(np.full(3, -np.log(3)), np.zeros((3, 3)), np.tile(np.eye(3), (3, 1, 1)), floor=1e-12)
    gate = gate.fit_step(X, SOFT, WEIGHT)
    for i in range(3):
        share = WEIGHT * SOFT[:, i]
        np.testing.assert_allclose(gate.mean[i], np.average(X, axis=0, weights=share), atol=1e-12)
        np.testing.assert_allclose(gate.covariance[i], np.cov(X.T, aweights=share, ddof=0), atol=1e-12)
    density = [
        np.exp(gate.log_prior[i]) * multivariate_normal(gate.mean[i], gate.covariance[i]).pdf(X) for i in range(3)
    ]
    density = np.stack(density, 1)
    np.testing.assert_allclose(gate.log_score(X), np.log(density), atol=1e-9)
    expected = density / density.sum(1, keepdims=True)
    np.testing.assert_allclose(np.exp(gate_log_proba(gate, X)), expected, atol=1e-12)


def test_clipping_eigenvalues_is_the_best_covariance_above_the_floor():
    scatter = np.diag([2.0, 1e-3])

    def value(covariance):
        return -np.linalg.slogdet(covariance)[1] - np.trace(np.linalg.solve(covariance, scatter))

    clipped = floor_eigenvalues(scatter, 0.1)
    assert np.linalg.eigvalsh(clipped).min() >= 0.1 - 1e-12
    for _ in range(50):
        noise = RNG.normal(size=(2, 2))
        assert value(clipped) >= value(floor_eigenvalues(clipped + 0.1 * (noise + noise.T), 0.1))
    assert value(clipped) > value(scatter + 0.1 * np.eye(2))


def test_tree_gate_is_the_product_and_its_m_step_splits():
    top = SoftmaxGate(RNG.normal(size=(4, 2)), steps=30)
    lower = tuple(SoftmaxGate(RNG.normal(size=(4, 3)), steps=30) for _ in range(2))
    tree = TreeGate(top, lower)
    g, child = np.exp(top.log_score(X)), [np.exp(gate.log_score(X)) for gate in lower]
    expected = np.hstack([g[:, [i]] * child[i] for i in range(2)])
    np.testing.assert_allclose(np.exp(tree.log_score(X)), expected, atol=1e-12)
    np.testing.assert_allclose(expected.sum(1), 1)
    h = RNG.dirichlet(np.ones(6), size=120)
    fitted = tree.fit_step(X, h, WEIGHT)
    branch = h.reshape(120, 2, 3).sum(2)
    assert np.abs(with_ones(X).T @ (WEIGHT[:, None] * (branch - np.exp(fitted.top.log_score(X))))).max() < 1e-6
    for i in range(2):
        given = h.reshape(120, 2, 3)[:, i] / branch[:, [i]]
        residual = given - np.exp(fitted.lower[i].log_score(X))
        assert np.abs(with_ones(X).T @ ((WEIGHT * branch[:, i])[:, None] * residual)).max() < 1e-6


@pytest.mark.parametrize("at", [-3.0, 0.2, 4.0])
def test_densities_integrate_to_one(at):
    point = np.array([[at, 1.0, -0.5]])

    def total(experts, values):
        many = np.repeat(point, len(values), axis=0)
        return np.exp(Mixture(SoftmaxGate(COEF), experts).log_likelihood(many, values)).sum()

    coefs = np.random.default_rng(1).normal(size=(3, 4))
    normal = Mixture(SoftmaxGate(COEF), tuple(GaussianExpert(c, v) for c, v in zip(coefs, (0.3, 1, 2), strict=True)))
    area = quad(
        lambda y: float(np.exp(normal.log_likelihood(point, np.array([y])))[0]), -40, 40, limit=400, points=[0]
    )[0]
    assert area == pytest.approx(1, abs=1e-7)
    assert total(tuple(PoissonExpert(0.4 * c) for c in coefs), np.arange(400.0)) == pytest.approx(1, abs=1e-10)
    assert total(tuple(BernoulliExpert(c) for c in coefs), np.arange(2.0)) == pytest.approx(1, abs=1e-12)
    many = tuple(MultinomialExpert(np.outer(c, [1.0, -1.0, 0.5, 2.0])) for c in coefs)
    assert total(many, np.arange(4.0)) == pytest.approx(1, abs=1e-12)


def test_weighted_gaussian_step_is_weighted_least_squares():
    y = X @ [1.0, 2.0, -1.0] + 0.5 + RNG.normal(size=120)
    expert = GaussianExpert(np.zeros(4)).fit_step(X, y, WEIGHT)
    oracle = LinearRegression().fit(X, y, WEIGHT)
    np.testing.assert_allclose(expert.coef, [*oracle.coef_, oracle.intercept_], atol=1e-10)
    residual = y - oracle.predict(X)
    assert expert.variance == pytest.approx(np.average(residual**2, weights=WEIGHT))


def test_variance_floor_and_empty_weight():
    expert = GaussianExpert(np.zeros(4), floor=0.01).fit_step(X, X[:, 0], WEIGHT)
    assert expert.variance == 0.01
    assert expert.fit_step(X, X[:, 1], np.zeros(120)) is expert


def test_ridge_step_of_a_gaussian_expert_reaches_a_stationary_point():
    y, expert = X @ [1.0, 2.0, -1.0] + RNG.normal(size=120), GaussianExpert(np.zeros(4), ridge=5.0)
    for _ in range(60):
        expert = expert.fit_step(X, y, WEIGHT)
    gradient = with_ones(X).T @ (WEIGHT * (y - expert.mean(X))) / expert.variance - 5.0 * expert.coef
    np.testing.assert_allclose(gradient, 0, atol=1e-8)


def test_weighted_bernoulli_and_multinomial_steps_against_logistic_regression():
    settings = {"tol": 1e-12, "max_iter": 2000}
    y = (X[:, 0] + RNG.normal(size=120) > 0).astype(float)
    expert = BernoulliExpert(np.zeros(4), steps=50).fit_step(X, y, WEIGHT)
    oracle = LogisticRegression(C=np.inf, **settings).fit(X, y, WEIGHT)
    np.testing.assert_allclose(expert.mean(X), oracle.predict_proba(X)[:, 1], atol=1e-6)
    np.testing.assert_allclose(expert.coef, [*oracle.coef_[0], *oracle.intercept_], atol=1e-5)
    labels = np.digitize(X[:, 0] + RNG.normal(size=120), [-0.5, 0.5]).astype(float)
    many = MultinomialExpert(np.zeros((4, 3)), steps=50).fit_step(X, labels, WEIGHT)
    oracle = LogisticRegression(C=np.inf, **settings).fit(X, labels, WEIGHT)
    np.testing.assert_allclose(many.mean(X), oracle.predict_proba(X), atol=1e-5)


def test_weighted_poisson_step_against_poisson_regressor():
    y = RNG.poisson(np.exp(0.5 * X[:, 0] + 1)).astype(float)
    expert = PoissonExpert(np.zeros(4), steps=50).fit_step(X, y, WEIGHT)
    oracle = PoissonRegressor(alpha=0, tol=1e-10, solver="newton-cholesky").fit(X, y, WEIGHT)
    np.testing.assert_allclose(expert.coef, [*oracle.coef_, oracle.intercept_], atol=1e-6)


@pytest.mark.parametrize("kind", [BernoulliExpert, PoissonExpert])
def test_glm_steps_never_lower_the_likelihood(kind):
    for seed in range(40):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(12, 2)) * 5
        y = rng.poisson(3.0, 12).astype(float) if kind is PoissonExpert else rng.integers(0, 2, 12).astype(float)
        weight, expert = rng.random(12), kind(rng.normal(size=3) * 3)
        for _ in range(8):
            better = expert.fit_step(x, y, weight)
            assert weight @ better.log_prob(x, y) >= weight @ expert.log_prob(x, y) - 1e-9
            expert = better


def test_far_out_inputs_stay_finite():
    far = np.full((2, 3), 1e9) * [[1], [-1]]
    assert np.isfinite(PoissonExpert(np.ones(4)).mean(far)).all()
    assert np.isfinite(PoissonExpert(np.ones(4)).log_prob(far, np.ones(2))).all()
    assert np.isfinite(SoftmaxGate(COEF).log_score(far)).all()


def test_scaling_is_undone_exactly():
    raw = X * [1, 100, 0.01] + [5, -3, 0]
    scaling = Scaling.of(raw, np.ones(120))
    coef = RNG.normal(size=4)
    undone = scaling.undo(coef)
    np.testing.assert_allclose(raw @ undone[:-1] + undone[-1], scaling.apply(raw) @ coef[:-1] + coef[-1], atol=1e-9)
    constant = Scaling.of(np.full((5, 1), 0.1), np.ones(5))
    np.testing.assert_allclose(constant.apply(np.full((5, 1), 0.1)), 0, atol=1e-12)
    assert constant.scale[0] == 1
