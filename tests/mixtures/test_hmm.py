"""Hidden Markov models: equal to hmmlearn and to sums over all paths, and EM that never goes down."""

from itertools import pairwise, product

import numpy as np
import pytest
from hmmlearn.hmm import GaussianHMM as Oracle

from terramoe.errors import ConfigError, RoutingError
from terramoe.mixtures.baum_welch import baum_welch, expected_statistics, fit_hmm, m_step
from terramoe.mixtures.hmm import GaussianHMM
from terramoe.mixtures.hmm_clusters import stack
from terramoe.mixtures.hmm_start import start_hmm
from terramoe.mixtures.sequences import read_sequences

LENGTHS = (7, 1, 12, 4, 2)


def drawn(seed, states=3, features=2, full=False, left_right=False):
    """A random HMM and random sequences of five lengths."""
    rng = np.random.default_rng(seed)
    transition = rng.dirichlet(np.ones(states), states)
    start = rng.dirichlet(np.ones(states))
    if left_right:
        transition = np.triu(transition)
        transition /= transition.sum(axis=1, keepdims=True)
        start = np.eye(states)[0]
    covariance = rng.uniform(0.3, 1.5, (states, features))
    if full:
        root = rng.normal(size=(states, features, features))
        covariance = root @ root.swapaxes(1, 2) + 0.3 * np.eye(features)
    with np.errstate(divide="ignore"):
        model = GaussianHMM(np.log(start), np.log(transition), rng.normal(size=(states, features)), covariance)
    arrays = [rng.normal(size=(length, features)) * 1.5 for length in LENGTHS]
    return model, arrays


def oracle_of(model):
    states, features = model.mean.shape
    oracle = Oracle(
        states, "full" if model.full else "diag", covars_prior=0, covars_weight=0, min_covar=0, init_params="", n_iter=1
    )
    oracle.startprob_, oracle.transmat_ = np.exp(model.log_start), np.exp(model.log_transition)
    oracle.means_, oracle.covars_ = model.mean, model.covariance
    oracle.n_features = features
    return oracle


CASES = [(0, False, False), (1, True, False), (2, False, True), (3, True, True)]


@pytest.mark.parametrize(("seed", "full", "left_right"), CASES)
def test_likelihood_posterior_and_paths_are_those_of_hmmlearn(seed, full, left_right):
    model, arrays = drawn(seed, full=full, left_right=left_right)
    oracle, sequences = oracle_of(model), read_sequences(arrays)
    posterior = model.posterior(sequences)
    paths, height = model.viterbi(sequences)
    np.testing.assert_allclose(model.log_likelihood(sequences), posterior.log_likelihood, rtol=1e-12)
    for i, array in enumerate(arrays):
        score, state = oracle.score_samples(array)
        best, path = oracle.decode(array)
        np.testing.assert_allclose(posterior.log_likelihood[i], score, rtol=1e-10)
        np.testing.assert_allclose(posterior.state[i, : len(array)], state, atol=1e-10)
        assert not posterior.state[i, len(array) :].any()
        np.testing.assert_array_equal(paths[i], path)
        np.testing.assert_allclose(height[i], best, rtol=1e-10)


@pytest.mark.parametrize(("seed", "full", "left_right"), CASES)
def test_one_em_step_is_that_of_hmmlearn(seed, full, left_right):
    model, arrays = drawn(seed, full=full, left_right=left_right)
    oracle, sequences = oracle_of(model), read_sequences(arrays)
    oracle.fit(np.concatenate(arrays), LENGTHS)
    statistics = expected_statistics(model, sequences, model.posterior(sequences), np.ones(len(arrays)))
    ours = m_step(model, statistics, 1e-12)
    np.testing.assert_allclose(np.exp(ours.log_start), oracle.startprob_, atol=1e-10)
    np.testing.assert_allclose(np.exp(ours.log_transition), oracle.transmat_, atol=1e-10)
    np.testing.assert_allclose(ours.mean, oracle.means_, atol=1e-10)
    theirs = oracle.covars_ if full else np.diagonal(oracle.covars_, axis1=1, axis2=2)
    np.testing.assert_allclose(ours.covariance, theirs, atol=1e-8)


def test_likelihood_is_the_sum_over_all_paths():
    model, arrays = drawn(4)
    array = arrays[3]
    emission = model.log_emission(read_sequences([array]))[0]
    heights = [
        model.log_start[path[0]]
        + sum(model.log_transition[i, j] for i, j in pairwise(path))
        + sum(emission[t, state] for t, state in enumerate(path))
        for path in product(range(3), repeat=len(array))
    ]
    np.testing.assert_allclose(model.log_likelihood(read_sequences([array])), [np.logaddexp.reduce(heights)])
    np.testing.assert_allclose(model.viterbi(read_sequences([array]))[1], [max(heights)])


def test_a_stack_is_its_members_and_padding_changes_nothing():
    members = [drawn(seed, full=True)[0] for seed in (5, 6)]
    arrays = drawn(5)[1]
    sequences, weight = read_sequences(arrays), np.array([[1.0, 0.5, 2.0, 0.0, 1.0], [0.2, 1.0, 1.0, 3.0, 0.0]])
    both = baum_welch(stack(members), sequences, weight, floor=1e-2, tol=0.0, max_iter=3)
    for k, member in enumerate(members):
        alone = baum_welch(member, sequences, weight[k], floor=1e-2, tol=0.0, max_iter=3).model
        np.testing.assert_allclose(both.model.mean[k], alone.mean)
        np.testing.assert_allclose(both.model.log_transition[k], alone.log_transition)
        np.testing.assert_allclose(both.model.covariance[k], alone.covariance)
        single = [member.log_likelihood(read_sequences([array]))[0] for array in arrays]
        np.testing.assert_allclose(member.log_likelihood(sequences), single)


def test_a_case_weight_of_two_is_the_sequence_given_twice():
    model, arrays = drawn(7)
    how = {"floor": 1e-3, "tol": 0.0, "max_iter": 4}
    twice = baum_welch(model, read_sequences([*arrays, arrays[0]]), np.ones(6), **how)
    weighted = baum_welch(model, read_sequences(arrays), np.array([2.0, 1, 1, 1, 1]), **how)
    np.testing.assert_allclose(twice.trace, weighted.trace)
    np.testing.assert_allclose(twice.model.mean, weighted.model.mean)


@pytest.mark.parametrize("covariance", ["diag", "full"])
@pytest.mark.parametrize("topology", ["ergodic", "left-right"])
@pytest.mark.parametrize("floor", [1e-3, 0.7])
def test_the_likelihood_never_decreases_and_the_floor_holds(covariance, topology, floor):
    """The second floor is active: adding it, or clipping the wrong thing, would break the monotone trace."""
    for seed in range(4):
        sequences = read_sequences(drawn(seed)[1])
        how = {"covariance": covariance, "topology": topology, "floor": floor}
        fit = fit_hmm(sequences, 3, tol=0.0, max_iter=15, random_state=seed, **how)
        assert np.diff(fit.trace).min() > -1e-9
        assert fit.trace[-1] > fit.trace[0] + 1
        variances = np.linalg.eigvalsh(fit.model.covariance) if covariance == "full" else fit.model.covariance
        assert variances.min() >= floor * (1 - 1e-9)
        if topology == "left-right":
            assert (np.exp(fit.model.log_transition)[np.tril_indices(3, -1)] == 0).all()


def test_fit_finds_the_states_that_made_the_sequences_and_restarts_help():
    rng = np.random.default_rng(0)
    states = [np.repeat([0, 1, 2, 0], rng.integers(3, 9, 4)) for _ in range(12)]
    arrays = [np.array([[0.0], [4.0], [8.0]])[path] + rng.normal(size=(len(path), 1)) for path in states]
    sequences = read_sequences(arrays)
    fit = fit_hmm(sequences, 3, n_init=3, random_state=0)
    order = fit.model.mean[:, 0].argsort().argsort()
    found = [order[path] for path in fit.model.viterbi(sequences)[0]]
    assert np.mean(np.concatenate(found) == np.concatenate(states)) > 0.95
    once = fit_hmm(sequences, 3, n_init=1, random_state=0)
    assert fit.trace[-1] >= once.trace[-1]
    again = fit_hmm(sequences, 3, n_init=3, random_state=0)
    np.testing.assert_array_equal(fit.model.mean, again.model.mean)


def test_long_and_far_sequences_stay_finite():
    model = drawn(8)[0]
    sequences = read_sequences([np.full((3000, 2), 50.0), np.full((1, 2), 1e90)])
    posterior = model.posterior(sequences)
    assert np.isfinite(posterior.log_likelihood).all()
    np.testing.assert_allclose(posterior.state[0].sum(axis=1), 1)


def test_constant_frames_and_more_states_than_frames():
    sequences = read_sequences([np.ones((2, 2))])
    for topology in ("ergodic", "left-right"):
        fit = fit_hmm(sequences, 5, topology=topology, max_iter=3, random_state=0)
        assert np.isfinite(fit.trace).all()
        assert np.isfinite(fit.model.mean).all()


@pytest.mark.parametrize(
    ("sequences", "message"),
    [
        ([], "no sequence"),
        ("abc", "type str"),
        (7, "type int"),
        ([np.ones((3, 2)), np.ones((0, 2))], r"\[1\]"),
        ([np.ones((3, 2)), np.ones((3, 3))], r"\[1\]"),
        ([np.ones(3)], "shape"),
        ([np.float64(1)], "shape"),
        ([np.ones((3, 2)), np.full((2, 2), np.nan)], r"4 of 4 values are missing.*\[1\]"),
        ([np.array([[1.0, np.inf]])], "1 of 2"),
        ([np.array([[1e200]])], "absurd"),
        ([np.array([["a"]])], "not an array of real numbers"),
        ([np.array([[1j]])], "complex"),
    ],
)
def test_sequences_that_cannot_be_read_are_named(sequences, message):
    with pytest.raises(RoutingError, match=message):
        read_sequences(sequences)


@pytest.mark.parametrize("wrong", [{"states": 0}, {"covariance": "tied"}, {"topology": "x"}, {"floor": 0.0}])
def test_impossible_settings(wrong):
    with pytest.raises(ConfigError):
        fit_hmm(read_sequences([np.ones((3, 2))]), **wrong)
    with pytest.raises(ConfigError):
        fit_hmm(read_sequences([np.ones((3, 2))]), n_init=0)
    with pytest.raises(RoutingError, match="do not fit"):
        GaussianHMM(np.zeros(2), np.zeros((2, 3)), np.zeros((2, 1)), np.ones((2, 1)))


def test_start_covers_each_part_of_a_left_right_sequence():
    ramp = read_sequences([np.linspace(0, 10, 30)[:, None]] * 4)
    start = start_hmm(ramp, np.ones(4), 3, np.random.RandomState(0), topology="left-right")
    assert (np.diff(start.mean[:, 0]) > 0).all()
