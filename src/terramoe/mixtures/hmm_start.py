"""A Gaussian hidden Markov model before training."""

from __future__ import annotations

import warnings

import numpy as np
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning

from terramoe.mixtures.gating import floor_eigenvalues
from terramoe.mixtures.hmm import GaussianHMM
from terramoe.mixtures.sequences import Sequences

STAY = 0.7  # probability of staying in a state


def start_hmm(
    sequences: Sequences,
    weight: np.ndarray,
    states: int,
    random_state: np.random.RandomState,
    *,
    covariance: str = "diag",
    topology: str = "ergodic",
    floor: float = 1e-3,
) -> GaussianHMM:
    """One HMM before training, from sequences with case weights (S,).

    Means are centres of clustered frames (ergodic), or means of N equal parts of each sequence, jittered (left-right:
    the path starts in state 0 and may only stay or go on by one). Every state has the spread of all frames.
    """
    frames, part = sequences.frames, _part_of_sequence(sequences, states)
    case = np.repeat(weight, sequences.lengths)
    centre = case @ frames / case.sum()
    moment = (case[:, None] * (frames - centre)).T @ (frames - centre) / case.sum()
    spread = np.maximum(np.diag(moment), floor)
    if topology == "left-right":
        shares = case * (part == np.arange(states)[:, None])
        mean = (shares @ frames + 1e-3 * case.mean() * centre) / (shares.sum(axis=1) + 1e-3 * case.mean())[:, None]
        mean = mean + 0.2 * np.sqrt(spread) * random_state.normal(size=mean.shape)
        transition = STAY * np.eye(states) + (1 - STAY) * np.eye(states, k=1)
        transition[-1, -1] = 1.0
        start = np.eye(states)[0]
    else:
        mean = _centres(frames, case, states, random_state)
        transition = np.full((states, states), (1 - STAY) / max(states - 1, 1))
        np.fill_diagonal(transition, STAY if states > 1 else 1.0)
        start = np.full(states, 1 / states)
    one = spread if covariance == "diag" else floor_eigenvalues(moment, floor)
    with np.errstate(divide="ignore"):
        return GaussianHMM(np.log(start), np.log(transition), mean, np.tile(one, (states,) + (1,) * one.ndim))


def _part_of_sequence(sequences: Sequences, parts: int) -> np.ndarray:
    """(frames,) which of ``parts`` equal parts of its sequence each frame is in."""
    rows = [np.arange(length) * parts // length for length in sequences.lengths]
    return np.concatenate(rows)


def _centres(frames: np.ndarray, case: np.ndarray, states: int, random_state: np.random.RandomState) -> np.ndarray:
    """(states, D) centres of weighted frames; where there are fewer distinct frames than states, jittered copies."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct frames than states: mended below
        clusters = min(states, len(frames))
        centres = KMeans(clusters, n_init=1, random_state=random_state).fit(frames, sample_weight=case).cluster_centers_
    centres = centres[np.arange(states) % clusters]
    return centres + 1e-3 * frames.std(axis=0) * random_state.normal(size=centres.shape)
