"""Where the mixture of HMM experts starts: sequences clustered by likelihood, and HMMs fitted to the clusters.

Without it the gate stays near uniform and the experts stay alike.
"""

from __future__ import annotations

import numpy as np
from scipy.special import softmax
from sklearn.cluster import KMeans

from terramoe.mixtures.baum_welch import baum_welch
from terramoe.mixtures.hmm import GaussianHMM
from terramoe.mixtures.hmm_softmax import HmmSoftmax
from terramoe.mixtures.hmm_start import start_hmm
from terramoe.mixtures.sequences import Sequences

FAINT = 1e-2  # weight of a sequence in a cluster that it is not in: no HMM is left without data


def cluster_sequences(
    sequences: Sequences,
    clusters: int,
    states: int,
    random_state: np.random.RandomState,
    rounds: int,
    *,
    covariance: str,
    topology: str,
    floor: float,
) -> np.ndarray:
    """(S, clusters) memberships, rows summing to 1: k-means of summaries, then EM of a mixture of HMMs."""
    if clusters == 1:
        return np.ones((len(sequences), 1))
    label = KMeans(clusters, n_init=4, random_state=random_state).fit(summaries(sequences)).labels_
    share = np.eye(clusters)[label]
    how = {"covariance": covariance, "topology": topology, "floor": floor}
    mixture = start_softmax(sequences, share, states, random_state, rounds, **how)
    for _ in range(rounds):
        share = softmax(mixture.log_prior + mixture.models.log_likelihood(sequences).T, axis=1)
        weight = (share + FAINT).T
        fit = baum_welch(mixture.models, sequences, weight, floor=floor, tol=0.0, max_iter=1)
        mixture = HmmSoftmax(_log_prior(weight.T), fit.model, floor)
    return share


def summaries(sequences: Sequences) -> np.ndarray:
    """(S, 2 D) mean and standard deviation over time of each feature, standardised over the sequences."""
    present = sequences.present[:, :, None]
    count = sequences.lengths[:, None]
    mean = (sequences.values * present).sum(axis=1) / count
    spread = np.sqrt((present * (sequences.values - mean[:, None]) ** 2).sum(axis=1) / count)
    columns = np.hstack([mean, spread])
    scale = columns.std(axis=0)
    return (columns - columns.mean(axis=0)) / np.where(scale > 0, scale, 1.0)


def start_softmax(
    sequences: Sequences,
    share: np.ndarray,
    states: int,
    random_state: np.random.RandomState,
    rounds: int,
    *,
    covariance: str,
    topology: str,
    floor: float,
) -> HmmSoftmax:
    """One HMM per column of ``share`` (S, K), each after some Baum-Welch iterations on its column as case weights."""
    weight = (share + FAINT).T
    how = {"covariance": covariance, "topology": topology, "floor": floor}
    models = stack([start_hmm(sequences, row, states, random_state, **how) for row in weight])
    fit = baum_welch(models, sequences, weight, floor=floor, tol=0.0, max_iter=rounds)
    return HmmSoftmax(_log_prior(weight.T), fit.model, floor)


def stack(models: list[GaussianHMM]) -> GaussianHMM:
    """K single HMMs of the same shapes as one stack."""
    names = ("log_start", "log_transition", "mean", "covariance")
    return GaussianHMM(*(np.stack([getattr(model, name) for model in models]) for name in names))


def _log_prior(share: np.ndarray) -> np.ndarray:
    return np.log(share.sum(axis=0) / share.sum())
