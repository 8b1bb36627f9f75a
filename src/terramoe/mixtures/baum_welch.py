"""Baum-Welch training of Gaussian HMMs, with case weights, a covariance floor and restarts.

A Maximization Technique Occurring in the Statistical Analysis of Probabilistic Functions of Markov Chains, 1970,
DOI 10.1214/aoms/1177697196. Shapes as in ``hmm``; a stack of K HMMs is trained at once, each on its own weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from terramoe.errors import ConfigError
from terramoe.mixtures.gating import EMPTY, floor_eigenvalues
from terramoe.mixtures.hmm import GaussianHMM, Posterior
from terramoe.mixtures.hmm_start import start_hmm
from terramoe.mixtures.sequences import Sequences


@dataclass(frozen=True)
class Statistics:
    """Weighted expected counts and moments. They add up; moments are about the model's means, so nothing cancels.

    Attributes:
        start: (..., N).
        transition: (..., N, N).
        state: (..., N) expected frames in each state.
        first: (..., N, D) sum of the frames less the model's mean.
        second: (..., N, D) or (..., N, D, D) sum of their squares or outer products.
    """

    start: np.ndarray
    transition: np.ndarray
    state: np.ndarray
    first: np.ndarray
    second: np.ndarray

    def __add__(self, other: Statistics) -> Statistics:
        return Statistics(
            self.start + other.start,
            self.transition + other.transition,
            self.state + other.state,
            self.first + other.first,
            self.second + other.second,
        )


def expected_statistics(
    model: GaussianHMM, sequences: Sequences, posterior: Posterior, weight: np.ndarray
) -> Statistics:
    """E-step: statistics under case weights (..., S), which may be negative."""
    share = posterior.state * weight[..., None, None]
    difference = sequences.values[:, :, None, :] - model.mean[..., None, None, :, :]
    scaled = share[..., None] * difference
    squares = "...stni,...stnj->...nij" if model.full else "...stni,...stni->...ni"
    return Statistics(
        start=share[..., 0, :].sum(axis=-2),
        transition=posterior.transitions(model.log_transition, sequences.lengths, weight),
        state=share.sum(axis=(-3, -2)),
        first=scaled.sum(axis=(-4, -3)),
        second=np.einsum(squares, scaled, difference),
    )


def m_step(model: GaussianHMM, statistics: Statistics, floor: float) -> GaussianHMM:
    """The HMM of greatest expected likelihood with no variance (diagonal) or eigenvalue (full) below ``floor``.

    Clipping is the exact maximum under that constraint, so EM stays monotone. A state, or a row of transitions,
    without weight keeps its parameters.
    """
    used = statistics.state > EMPTY * statistics.state.sum(axis=-1, keepdims=True)
    count = np.where(used, statistics.state, 1.0)[..., None]
    shift = np.where(used[..., None], statistics.first / count, 0.0)
    if model.full:
        scatter = statistics.second / count[..., None] - shift[..., :, None] * shift[..., None, :]
        covariance = np.where(used[..., None, None], scatter, model.covariance)
        clipped = [floor_eigenvalues(matrix, floor) for matrix in covariance.reshape(-1, *covariance.shape[-2:])]
        covariance = np.reshape(clipped, covariance.shape)
    else:
        scatter = statistics.second / count - shift**2
        covariance = np.maximum(np.where(used[..., None], scatter, model.covariance), floor)
    return GaussianHMM(
        _log_shares(statistics.start, model.log_start),
        _log_shares(statistics.transition, model.log_transition),
        model.mean + shift,
        covariance,
    )


def _log_shares(counts: np.ndarray, fallback: np.ndarray) -> np.ndarray:
    """Log of counts normalised over the last axis; the fallback where all are 0."""
    total = counts.sum(axis=-1, keepdims=True)
    with np.errstate(divide="ignore"):
        return np.where(total > 0, np.log(counts / np.where(total > 0, total, 1.0)), fallback)


@dataclass(frozen=True)
class HMMFit:
    """What Baum-Welch found.

    Attributes:
        model: after the last M-step.
        trace: (iterations + 1,) weighted log-likelihood at the start and after each iteration.
        converged: whether the last gain per unit of weight was below the tolerance.
    """

    model: GaussianHMM
    trace: np.ndarray
    converged: bool


def baum_welch(
    model: GaussianHMM, sequences: Sequences, weight: np.ndarray, *, floor: float, tol: float, max_iter: int
) -> HMMFit:
    """EM from ``model`` with case weights (..., S); the log-likelihood never decreases from the first M-step on.

    The start must respect the floor if the first M-step is to be monotone too.
    """
    posterior = model.posterior(sequences)
    trace = [float((weight * posterior.log_likelihood).sum())]
    for _ in range(max_iter):
        model = m_step(model, expected_statistics(model, sequences, posterior, weight), floor)
        posterior = model.posterior(sequences)
        trace.append(float((weight * posterior.log_likelihood).sum()))
        if trace[-1] - trace[-2] < tol * weight.sum():
            return HMMFit(model, np.array(trace), True)
    return HMMFit(model, np.array(trace), False)


def fit_hmm(
    sequences: Sequences,
    states: int = 3,
    *,
    weight: np.ndarray | None = None,
    covariance: str = "diag",
    topology: str = "ergodic",
    floor: float = 1e-3,
    tol: float = 1e-4,
    max_iter: int = 100,
    n_init: int = 1,
    random_state: np.random.RandomState | int | None = None,
) -> HMMFit:
    """The best of ``n_init`` runs of Baum-Welch, the earlier one on ties.

    Args:
        weight: (S,) case weights; None counts every sequence once.
        covariance: "diag" or "full".
        topology: "ergodic" or "left-right".
        floor: least variance or eigenvalue, in the squared unit of the features.

    Raises:
        ConfigError: a setting that cannot be.
    """
    check_hmm_settings("fit_hmm", states=states, covariance=covariance, topology=topology, floor=floor)
    if min(n_init, max_iter) < 1:
        raise ConfigError(f"n_init = {n_init}, max_iter = {max_iter}", where="fit_hmm", fix="use 1 or more")
    weight = np.ones(len(sequences)) if weight is None else weight
    random = np.random.RandomState(random_state) if not hasattr(random_state, "normal") else random_state
    best = None
    for _ in range(n_init):
        start = start_hmm(sequences, weight, states, random, covariance=covariance, topology=topology, floor=floor)
        result = baum_welch(start, sequences, weight, floor=floor, tol=tol, max_iter=max_iter)
        if best is None or result.trace[-1] > best.trace[-1]:
            best = result
    return best


def check_hmm_settings(where: str, *, states: int, covariance: str, topology: str, floor: float) -> None:
    """Raise a ConfigError that names the setting which cannot be."""
    for holds, what, fix in (
        (states >= 1, f"n_states is {states!r}", "use 1 or more"),
        (covariance in ("diag", "full"), f"no covariance '{covariance}'", "use diag or full"),
        (topology in ("ergodic", "left-right"), f"no topology '{topology}'", "use ergodic or left-right"),
        (floor > 0, f"variance_floor is {floor!r}", "use a number above 0"),
    ):
        if not holds:
            raise ConfigError(what, where=where, fix=fix)
