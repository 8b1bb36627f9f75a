"""EM: the likelihood never decreases, and does so without the safeguard."""

import warnings
from dataclasses import dataclass, replace

import numpy as np
import pytest
from sklearn.mixture import GaussianMixture

from terramoe.mixtures.em import Mixture, random_responsibilities, run_em
from terramoe.mixtures.experts import BernoulliExpert, GaussianExpert, MultinomialExpert, PoissonExpert
from terramoe.mixtures.gating import GaussianGate, SoftmaxGate, gate_log_proba
from terramoe.mixtures.softmax_regression import softmax_derivatives
from terramoe.mixtures.tree import TreeGate

EXPERTS = ("gaussian", "bernoulli", "poisson", "multinomial")
GATES = ("softmax", "gaussian", "tree")


def blank_gate(name, features, experts, ridge=0.0, steps=1):
    def soft(k):
        return SoftmaxGate(np.zeros((features + 1, k)), ridge, steps)

    if name == "softmax":
        return soft(experts)
    if name == "tree":
        return TreeGate(soft(2), (soft(experts // 2),) * 2)
    covariance = np.tile(np.eye(features), (experts, 1, 1))
    return GaussianGate(np.full(experts, -np.log(experts)), np.zeros((experts, features)), covariance)


def blank_expert(name, features, ridge=0.0, steps=1):
    zeros = np.zeros(features + 1)
    return {
        "gaussian": GaussianExpert(zeros, ridge=ridge),
        "bernoulli": BernoulliExpert(zeros, ridge, steps),
        "poisson": PoissonExpert(zeros, ridge, steps),
        "multinomial": MultinomialExpert(np.zeros((features + 1, 3)), ridge, steps),
    }[name]


def problem(seed):
    """A small random problem; the seed also picks gate, expert, ridge and number of Newton steps."""
    rng = np.random.default_rng(seed)
    gate, expert = GATES[seed % 3], EXPERTS[seed // 3 % 4]
    n, features = int(rng.integers(8, 40)), int(rng.integers(1, 4))
    X = rng.normal(size=(n, features))
    signal = 2 * np.sin(3 * X[:, 0]) + rng.normal(size=n)
    y = {
        "gaussian": signal,
        "bernoulli": (signal > 0).astype(float),
        "poisson": rng.poisson(np.exp(signal)).astype(float),
        "multinomial": np.digitize(signal, [-1.0, 1.0]).astype(float),
    }[expert]
    ridge, steps, experts = float(rng.choice([0.0, 0.0, 0.1])), int(rng.choice([1, 3])), 4
    blank = Mixture(
        blank_gate(gate, features, experts, ridge, steps), (blank_expert(expert, features, ridge, steps),) * experts
    )
    weight = rng.choice([0.3, 1.0, 2.0], size=n)
    features = np.column_stack([X, signal])
    start = random_responsibilities(features, experts, np.random.RandomState(seed))
    return blank.m_step(X, y, start, weight), X, y, weight


def rounding(trace):
    """What summing the terms of the objective may lose."""
    return 1e-11 * (1 + np.abs(trace[:-1]))


@pytest.mark.parametrize("block", range(4))
def test_the_objective_never_decreases_on_200_problems(block):
    for seed in range(50 * block, 50 * block + 50):
        result = run_em(*problem(seed), tol=0, max_iter=25)
        assert np.isfinite(result.trace).all(), seed
        fall = result.trace[:-1] - result.trace[1:]
        assert (fall <= rounding(result.trace)).all(), (seed, fall.max())


@dataclass(frozen=True)
class UndampedGate(SoftmaxGate):
    """The textbook step: the whole Newton step, wherever it leads."""

    def fit_step(self, X, responsibility, weight):
        coef = self.coef
        for _ in range(self.steps):
            gradient, curvature = softmax_derivatives(coef, X, responsibility, weight, self.ridge)
            coef = coef + (np.linalg.pinv(curvature) @ gradient).reshape(coef.shape)
        return replace(self, coef=coef)


def gate_problem(seed, kind, steps):
    """Three Gaussian experts on a jagged line; only the gate's step differs between kinds."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(60, 1))
    y = np.where(X[:, 0] < -0.3, 2 * X[:, 0], np.where(X[:, 0] < 0.5, 1 - 3 * X[:, 0], X[:, 0]))
    y = y + 0.05 * rng.normal(size=60)
    blank = Mixture(kind(np.zeros((2, 3)), steps=steps), (GaussianExpert(np.zeros(2)),) * 3)
    start = random_responsibilities(np.column_stack([X, y]), 3, np.random.RandomState(seed))
    return blank.m_step(X, y, start, np.ones(60)), X, y, np.ones(60)


def breaks(seed, kind, steps, iterations):
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            trace = run_em(*gate_problem(seed, kind, steps), tol=-np.inf, max_iter=iterations).trace
    except (np.linalg.LinAlgError, ValueError):  # NaN reached the solver
        return True
    return not (np.diff(trace) >= -1e-6).all()


@pytest.mark.parametrize(("steps", "iterations", "at_least"), [(1, 80, 1), (5, 40, 3)])
def test_undamped_newton_breaks_monotonicity_and_the_safeguard_mends_it(steps, iterations, at_least):
    """A single whole step fails late, when the gate saturates (4 of 16 when this was written); five fail early (6)."""
    seeds = range(16)
    assert sum(breaks(seed, UndampedGate, steps, iterations) for seed in seeds) >= at_least
    assert sum(breaks(seed, SoftmaxGate, steps, iterations) for seed in seeds) == 0


@pytest.mark.parametrize("seed", range(24))
def test_responsibilities_are_the_posterior_and_sum_to_one(seed):
    start, X, y, weight = problem(seed)
    mixture = run_em(start, X, y, weight, tol=0, max_iter=5).mixture
    posterior = mixture.responsibilities(X, y)
    np.testing.assert_allclose(posterior.sum(axis=1), 1, atol=1e-12)
    gate = np.exp(gate_log_proba(mixture.gate, X))
    direct = gate * np.exp(mixture.expert_log_prob(X, y))
    np.testing.assert_allclose(posterior, direct / direct.sum(axis=1, keepdims=True), atol=1e-10)
    np.testing.assert_allclose(mixture.log_likelihood(X, y), np.log(direct.sum(axis=1)), atol=1e-10)


def joint_parameters(mixture):
    """The Gaussian mixture over (x, y) that a Gaussian gate with Gaussian experts is."""
    means, covariances = [], []
    for mean, covariance, expert in zip(mixture.gate.mean, mixture.gate.covariance, mixture.experts, strict=True):
        slope = expert.coef[:-1]
        cross = covariance @ slope
        means.append([*mean, mean @ slope + expert.coef[-1]])
        covariances.append(np.block([[covariance, cross[:, None]], [cross[None], expert.variance + slope @ cross]]))
    return np.exp(mixture.gate.log_prior), np.array(means), np.array(covariances)


def test_gaussian_gate_with_gaussian_experts_is_the_joint_gaussian_mixture():
    """Same start, same number of iterations: scikit-learn's full-covariance mixture of (x, y) gives the same."""
    rng = np.random.default_rng(3)
    X = np.vstack([rng.normal([-1, 0], 0.7, (150, 2)), rng.normal([1.5, 1], 0.6, (150, 2))])
    y = np.where(np.arange(300) < 150, X @ [1.0, -2.0], X @ [-1.0, 0.5] + 2) + 0.3 * rng.normal(size=300)
    blank = Mixture(blank_gate("gaussian", 2, 2), (GaussianExpert(np.zeros(3)),) * 2)
    start = blank.m_step(X, y, random_responsibilities(X, 2, np.random.RandomState(0)), np.ones(300))
    weights, means, covariances = joint_parameters(start)
    for iterations in (1, 7):
        result = run_em(start, X, y, np.ones(300), tol=-np.inf, max_iter=iterations)
        assert (np.diff(result.trace) > 0).all()
        oracle = GaussianMixture(
            2,
            weights_init=weights,
            means_init=means,
            precisions_init=np.linalg.inv(covariances),
            reg_covar=0,
            tol=0,
            max_iter=iterations,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            oracle.fit(np.column_stack([X, y]))
        ours = joint_parameters(result.mixture)
        for got, wanted in zip(ours, (oracle.weights_, oracle.means_, oracle.covariances_), strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-7, atol=1e-9)
        joint = np.column_stack([X, y])
        np.testing.assert_allclose(result.mixture.responsibilities(X, y), oracle.predict_proba(joint), atol=1e-8)
        np.testing.assert_allclose(result.trace[-1], oracle.score_samples(joint).sum(), rtol=1e-10)


@pytest.mark.parametrize("seed", range(10))
def test_gaussian_gate_is_strictly_monotone(seed):
    start, X, y, weight = problem(12 * seed + 1)
    assert isinstance(start.gate, GaussianGate)
    assert isinstance(start.experts[0], GaussianExpert)
    start = Mixture(start.gate, tuple(replace(expert, ridge=0.0) for expert in start.experts))
    trace = run_em(start, X, y, weight, tol=0, max_iter=10).trace
    assert (np.diff(trace)[:3] > 0).all()


def test_random_responsibilities_do_not_see_the_order():
    features = np.random.default_rng(0).normal(size=(9, 2))
    order = np.random.default_rng(1).permutation(9)
    once = random_responsibilities(features, 3, np.random.RandomState(5))
    again = random_responsibilities(features[order], 3, np.random.RandomState(5))
    np.testing.assert_allclose(again, once[order], rtol=1e-12)
    np.testing.assert_allclose(once.sum(axis=1), 1)
