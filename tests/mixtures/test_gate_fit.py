"""The gate over fixed experts: it finds the true one, raises its objective, and says when it has not converged."""

import numpy as np
import pytest
from scipy.special import log_softmax, logsumexp
from sklearn.exceptions import ConvergenceWarning

from terramoe.mixtures.gate_fit import fit_gate
from terramoe.mixtures.gating import gate_log_proba


@pytest.fixture(scope="module")
def case():
    """Samples of three experts of known densities, under a known gate of two features."""
    rng = np.random.default_rng(0)
    design, coef = rng.normal(size=(6000, 2)), np.array([[2.0, -1.0, -1.0], [0.0, 1.5, -1.5]])
    log_gate = log_softmax(design @ coef, axis=1)
    expert = (rng.random((6000, 1)) > np.exp(log_gate).cumsum(axis=1)).sum(axis=1)
    value = rng.normal(3.0 * expert, 1.0)
    return design, -0.5 * (value[:, None] - 3.0 * np.arange(3)) ** 2, log_gate


def test_it_finds_the_gate_that_the_samples_came_from(case):
    design, log_density, log_gate = case
    found = fit_gate(design, log_density, ridge=1e-2, tol=1e-7, max_iter=500)
    assert found.converged
    assert (np.diff(found.trace) >= -1e-9).all()
    share = np.exp(gate_log_proba(found.mixture.gate, design))
    assert np.abs(share - np.exp(log_gate)).mean() < 0.02
    log_likelihood = logsumexp(gate_log_proba(found.mixture.gate, design) + log_density, axis=1).sum()
    assert found.trace[-1] == pytest.approx(log_likelihood - found.mixture.gate.penalty())
    assert found.trace[-1] > logsumexp(log_gate + log_density, axis=1).sum() - 1  # no worse than the true gate


def test_a_gate_that_does_not_learn_leaves_equal_shares(case):
    design, log_density, _ = case
    found = fit_gate(design, log_density, ridge=1e-2, tol=1e-7, max_iter=500, learned=False)
    np.testing.assert_allclose(gate_log_proba(found.mixture.gate, design), -np.log(3))
    assert len(found.trace) == 1


def test_it_says_when_it_has_not_converged(case):
    design, log_density, _ = case
    with pytest.warns(ConvergenceWarning, match="2 iterations"):
        assert not fit_gate(design, log_density, ridge=0.0, tol=1e-9, max_iter=2).converged
