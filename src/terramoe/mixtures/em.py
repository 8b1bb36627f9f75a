"""Expectation-maximisation of a mixture of experts, with a likelihood that never decreases.

Hierarchical Mixtures of Experts and the EM Algorithm, 1994, DOI 10.1162/neco.1994.6.2.181. The M-steps of softmax
gates and of experts that are not Gaussian have no closed form, so this is generalised EM: each raises its part of
the bound a little, by damped Newton steps (``newton``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import log_softmax, logsumexp, softmax

from terramoe.mixtures.experts import Expert
from terramoe.mixtures.gating import Gate, gate_log_proba


@dataclass(frozen=True)
class Mixture:
    """A gate and its E experts: ``p(y | x) = sum_i g_i(x) p_i(y | x)``."""

    gate: Gate
    experts: tuple[Expert, ...]

    def expert_log_prob(self, X: np.ndarray, y: np.ndarray) -> np.ndarray:
        """(n, E) ``log p_i(y | x)``."""
        return np.stack([expert.log_prob(X, y) for expert in self.experts], axis=1)

    def log_joint(self, X: np.ndarray, y: np.ndarray) -> np.ndarray:
        """(n, E) gate score plus expert log-probability: what the E-step normalises."""
        return self.gate.log_score(X) + self.expert_log_prob(X, y)

    def log_likelihood(self, X: np.ndarray, y: np.ndarray) -> np.ndarray:
        """(n,) ``log p(y | x)``, whatever the gate."""
        return logsumexp(gate_log_proba(self.gate, X) + self.expert_log_prob(X, y), axis=1)

    def responsibilities(self, X: np.ndarray, y: np.ndarray) -> np.ndarray:
        """(n, E) posterior of the expert given x and y; rows sum to 1."""
        return softmax(self.log_joint(X, y), axis=1)

    def mean(self, X: np.ndarray) -> np.ndarray:
        """Expectation of y: (n,), or class probabilities (n, K)."""
        prob = np.exp(gate_log_proba(self.gate, X))
        return sum((prob[:, i] * expert.mean(X).T).T for i, expert in enumerate(self.experts))

    def penalty(self) -> float:
        """Ridge terms of gate and experts."""
        return self.gate.penalty() + sum(expert.penalty() for expert in self.experts)

    def m_step(self, X: np.ndarray, y: np.ndarray, responsibility: np.ndarray, weight: np.ndarray) -> Mixture:
        """Gate and experts refitted to responsibilities (n, E) and case weights (n,)."""
        share = responsibility * weight[:, None]
        experts = tuple(expert.fit_step(X, y, share[:, i]) for i, expert in enumerate(self.experts))
        return Mixture(self.gate.fit_step(X, responsibility, weight), experts)


@dataclass(frozen=True)
class EMResult:
    """What EM found.

    Attributes:
        mixture: after the last M-step.
        trace: (iterations + 1,) weighted log-likelihood less the ridge terms, at the start and after each iteration;
            of y given x for a softmax gate, of x and y for a Gaussian gate.
        converged: whether the last gain per unit of weight was below the tolerance.
    """

    mixture: Mixture
    trace: np.ndarray
    converged: bool


def expectation(mixture: Mixture, X: np.ndarray, y: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, float]:
    """E-step: responsibilities (n, E), and the objective at the same parameters."""
    joint = mixture.log_joint(X, y)
    return np.exp(log_softmax(joint, axis=1)), float(weight @ logsumexp(joint, axis=1)) - mixture.penalty()


def run_em(
    mixture: Mixture, X: np.ndarray, y: np.ndarray, weight: np.ndarray, *, tol: float, max_iter: int
) -> EMResult:
    """EM from ``mixture`` until an iteration gains less than ``tol`` per unit of weight, or ``max_iter`` times."""
    responsibility, height = expectation(mixture, X, y, weight)
    trace = [height]
    for _ in range(max_iter):
        mixture = mixture.m_step(X, y, responsibility, weight)
        responsibility, height = expectation(mixture, X, y, weight)
        trace.append(height)
        if trace[-1] - trace[-2] < tol * weight.sum():
            return EMResult(mixture, np.array(trace), True)
    return EMResult(mixture, np.array(trace), False)


def run_restarts(
    blank: Mixture,
    X: np.ndarray,
    y: np.ndarray,
    weight: np.ndarray,
    features: np.ndarray,
    random_state: np.random.RandomState,
    *,
    n_init: int,
    tol: float,
    max_iter: int,
) -> EMResult:
    """The best of ``n_init`` runs of EM, each from random responsibilities; the earlier one on ties.

    Args:
        blank: gate and experts before any fit.
        features: (n, F) standardised columns by which samples are grouped at the start.
    """
    best = None
    for _ in range(n_init):
        responsibility = random_responsibilities(features, len(blank.experts), random_state)
        result = run_em(blank.m_step(X, y, responsibility, weight), X, y, weight, tol=tol, max_iter=max_iter)
        if best is None or result.trace[-1] > best.trace[-1]:
            best = result
    return best


def random_responsibilities(features: np.ndarray, experts: int, random_state: np.random.RandomState) -> np.ndarray:
    """(n, E): closeness to E random centres.

    A function of each sample's features alone, so that a weight of two is the same as the sample given twice, and
    the order of the samples does not matter.
    """
    centres = random_state.normal(size=(experts, features.shape[1]))
    distance = (features**2).sum(axis=1)[:, None] - 2 * features @ centres.T + (centres**2).sum(axis=1)
    return softmax(-2 * distance, axis=1)
