"""Classes as hidden Markov models read by Bayes' rule, trained for the posterior and not for the density.

``p(k | X) = softmax_k(log pi_k + log p(X | HMM_k))`` is a gate when k counts experts, an expert when k counts classes.
Its parameters have no closed-form maximum; extended Baum-Welch raises it step by step: An Inequality for Rational
Functions with Applications to Some Statistical Estimation Problems, 1991.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.special import log_softmax

from terramoe.mixtures.baum_welch import Statistics, expected_statistics, m_step
from terramoe.mixtures.hmm import GaussianHMM
from terramoe.mixtures.sequences import Sequences

ATTEMPTS = 10  # the damping grows fourfold each time, a millionfold in all
LEAST = 1e-2  # a probability shrinks to this share of itself in one step at most


@dataclass(frozen=True)
class HmmSoftmax:
    """K HMMs with prior weights.

    Attributes:
        log_prior: (K,) log pi.
        models: stack of K HMMs.
        floor: least variance or eigenvalue.
        damping: how much of the present parameters goes into the next step; the last one that worked.
    """

    log_prior: np.ndarray
    models: GaussianHMM
    floor: float = 1e-3
    damping: float = 1.0

    def log_proba(self, sequences: Sequences) -> np.ndarray:
        """(S, K) log p(k | X)."""
        return log_softmax(self.log_prior + self.models.log_likelihood(sequences).T, axis=1)

    def fit_step(self, sequences: Sequences, target: np.ndarray, weight: np.ndarray) -> HmmSoftmax:
        """One step up ``sum_s w_s sum_k t_sk log p(k | X_s)``, which never decreases.

        Args:
            target: (S, K), rows summing to 1.
            weight: (S,) case weights.
        """
        share = target * weight[:, None]
        posterior = self.models.posterior(sequences)
        log_proba = log_softmax(self.log_prior + posterior.log_likelihood.T, axis=1)
        height = float((share * log_proba).sum())
        against = np.exp(log_proba) * weight[:, None]
        if len(self.log_prior) == 1 or not np.any(share - against):
            return self
        pull = expected_statistics(self.models, sequences, posterior, (share - against).T)
        frames = np.einsum("ks,kstn->kn", (share + against).T, posterior.state)
        cases = (share + against).sum(axis=0)
        for attempt in range(ATTEMPTS):
            damping = self.damping * 4.0**attempt
            trial = self._moved(pull, (share - against).sum(axis=0), damping * frames, damping * cases)
            if float((share * trial.log_proba(sequences)).sum()) > height:
                return replace(trial, damping=max(damping / 2, 0.25))
        return replace(self, damping=self.damping * 4.0)

    def _moved(self, pull: Statistics, prior_pull: np.ndarray, frames: np.ndarray, cases: np.ndarray) -> HmmSoftmax:
        """The M-step on what pulls (signed) plus ``frames`` (K, N) and ``cases`` (K,) imagined under this model."""
        models = self.models
        start, transition = np.exp(models.log_start), np.exp(models.log_transition)
        imagined = Statistics(
            start=cases[:, None] * start,
            transition=frames[..., None] * transition,
            state=frames,
            first=np.zeros_like(models.mean),
            second=(frames.T * models.covariance.T).T,
        )
        total = pull + imagined
        total = replace(
            total,
            start=np.maximum(total.start, LEAST * imagined.start),
            transition=np.maximum(total.transition, LEAST * imagined.transition),
            state=np.maximum(total.state, LEAST * imagined.state),
        )
        prior = np.exp(self.log_prior) * cases.sum()
        prior = np.maximum(prior_pull + prior, LEAST * prior)
        return replace(self, log_prior=np.log(prior / prior.sum()), models=m_step(models, total, self.floor))
