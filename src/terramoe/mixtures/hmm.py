"""Hidden Markov models with Gaussian emissions: likelihood, posteriors and the best path, in log space.

A Tutorial on Hidden Markov Models and Selected Applications in Speech Recognition, 1989, DOI 10.1109/5.18626.

Shapes: S sequences padded to T frames, N states, D features. Whatever is written ``...`` is () for one HMM, or (K,)
for a stack of K HMMs with the same number of states, which all see all the sequences and are computed together.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from terramoe.errors import RoutingError
from terramoe.mixtures.sequences import Sequences


@dataclass(frozen=True)
class GaussianHMM:
    """One HMM, or a stack of them.

    Attributes:
        log_start: (..., N) log-probability of each first state.
        log_transition: (..., N, N) from the row's state to the column's; -inf where there is no way.
        mean: (..., N, D).
        covariance: (..., N, D) diagonal, or (..., N, D, D) full.

    Raises:
        RoutingError: shapes that do not fit together.
    """

    log_start: np.ndarray
    log_transition: np.ndarray
    mean: np.ndarray
    covariance: np.ndarray

    def __post_init__(self) -> None:
        states = self.log_start.shape
        fits = (
            self.log_transition.shape == (*states, *states[-1:])
            and self.mean.shape[:-1] == states
            and self.covariance.shape in (self.mean.shape, (*self.mean.shape, *self.mean.shape[-1:]))
        )
        if not fits:
            raise RoutingError(
                f"start {states}, transition {self.log_transition.shape}, mean {self.mean.shape} and covariance "
                f"{self.covariance.shape} do not fit",
                where="GaussianHMM",
                fix="use (..., N), (..., N, N), (..., N, D) and (..., N, D) or (..., N, D, D)",
            )

    @property
    def full(self) -> bool:
        """Whether covariances are matrices."""
        return self.covariance.ndim > self.mean.ndim

    def log_emission(self, sequences: Sequences) -> np.ndarray:
        """(..., S, T, N) log-density of each frame in each state; padding holds anything finite."""
        difference = sequences.values[:, :, None, :] - self.mean[..., None, None, :, :]
        if self.full:
            root = np.linalg.cholesky(self.covariance)
            whitened = np.einsum("...nij,...stnj->...stni", np.linalg.inv(root), difference)
            log_det = 2 * np.log(np.diagonal(root, axis1=-2, axis2=-1)).sum(axis=-1)
        else:
            whitened = difference / np.sqrt(self.covariance)[..., None, None, :, :]
            log_det = np.log(self.covariance).sum(axis=-1)
        constant = self.mean.shape[-1] * np.log(2 * np.pi) + log_det
        return -0.5 * ((whitened**2).sum(axis=-1) + constant[..., None, None, :])

    def log_likelihood(self, sequences: Sequences) -> np.ndarray:
        """(..., S) log p(sequence)."""
        log_alpha = forward(self.log_start, self.log_transition, self.log_emission(sequences), sequences.lengths)
        return logsumexp(log_alpha[..., -1, :], axis=-1)

    def posterior(self, sequences: Sequences) -> Posterior:
        """What is known of the hidden states given the sequences."""
        log_emission, lengths = self.log_emission(sequences), sequences.lengths
        log_alpha = forward(self.log_start, self.log_transition, log_emission, lengths)
        log_beta = backward(self.log_transition, log_emission, lengths)
        log_likelihood = logsumexp(log_alpha[..., -1, :], axis=-1)
        joint = log_alpha + log_beta  # normalised by frame: over long sequences rounding would add up
        state = np.exp(joint - logsumexp(joint, axis=-1)[..., None])
        state = np.where(sequences.present[:, :, None], state, 0.0)
        return Posterior(log_likelihood, state, log_alpha, log_beta + log_emission)

    def viterbi(self, sequences: Sequences) -> tuple[list[np.ndarray], np.ndarray]:
        """The most probable state paths of one HMM, the lower state on ties.

        Returns:
            S paths (T_i,), and (S,) their log-probability together with the sequence.
        """
        log_emission, lengths = self.log_emission(sequences), sequences.lengths
        score = self.log_start + log_emission[:, 0]
        came_from = []
        for t in range(1, sequences.values.shape[1]):
            reach = score[:, :, None] + self.log_transition
            going = (t < lengths)[:, None]
            came_from.append(np.where(going, reach.argmax(axis=1), np.arange(score.shape[1])))
            score = np.where(going, reach.max(axis=1) + log_emission[:, t], score)
        path = [score.argmax(axis=1)]
        for origin in reversed(came_from):  # in the padding a state comes from itself
            path.append(np.take_along_axis(origin, path[-1][:, None], axis=1)[:, 0])
        states = np.stack(path[::-1], axis=1)
        return [row[:length] for row, length in zip(states, lengths, strict=True)], score.max(axis=1)


@dataclass(frozen=True)
class Posterior:
    """Forward and backward passes over S sequences.

    Attributes:
        log_likelihood: (..., S).
        state: (..., S, T, N) probability of each state at each frame, 0 in the padding.
        log_alpha: (..., S, T, N) log p(frames up to t, state at t).
        log_beta_here: (..., S, T, N) log p(frame t and all later ones | state at t).
    """

    log_likelihood: np.ndarray
    state: np.ndarray
    log_alpha: np.ndarray = field(repr=False)
    log_beta_here: np.ndarray = field(repr=False)

    def transitions(self, log_transition: np.ndarray, lengths: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """(..., N, N) expected number of transitions over all sequences, with case weights (..., S) of any sign."""
        total = np.zeros_like(log_transition)
        for t in range(1, self.state.shape[-2]):
            log_pair = self.log_alpha[..., t - 1, :, None] + self.log_beta_here[..., t, None, :]
            pair = np.exp(log_pair + log_transition[..., None, :, :] - self.log_likelihood[..., None, None])
            total += np.einsum("...s,...sij->...ij", np.where(t < lengths, weight, 0.0), pair)
        return total


def forward(
    log_start: np.ndarray, log_transition: np.ndarray, log_emission: np.ndarray, lengths: np.ndarray
) -> np.ndarray:
    """(..., S, T, N) log p(frames up to t, state at t); after the end of a sequence, its last value."""
    emission, transition = _time_first(log_emission), _states_first(log_transition)
    log_alpha = np.empty_like(emission)
    log_alpha[0] = np.moveaxis(log_start, -1, 0)[..., None] + emission[0]
    for t in range(1, len(emission)):
        step = logsumexp(log_alpha[t - 1][:, None] + transition, axis=0) + emission[t]
        log_alpha[t] = np.where(t < lengths, step, log_alpha[t - 1])
    return _time_last(log_alpha)


def backward(log_transition: np.ndarray, log_emission: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """(..., S, T, N) log p(frames after t | state at t); 0 from the last frame on."""
    emission, transition = _time_first(log_emission), _states_first(log_transition).swapaxes(0, 1)
    log_beta = np.zeros_like(emission)
    for t in range(len(emission) - 2, -1, -1):
        step = logsumexp((emission[t + 1] + log_beta[t + 1])[:, None] + transition, axis=0)
        log_beta[t] = np.where(t + 1 < lengths, step, 0.0)
    return _time_last(log_beta)


def _time_first(values: np.ndarray) -> np.ndarray:
    """(..., S, T, N) -> (T, N, ..., S): sums over the few states then run along the memory, several times faster."""
    return np.ascontiguousarray(np.moveaxis(values, (-2, -1), (0, 1)))


def _time_last(values: np.ndarray) -> np.ndarray:
    """(T, N, ..., S) -> (..., S, T, N)."""
    return np.moveaxis(values, (0, 1), (-2, -1))


def _states_first(log_transition: np.ndarray) -> np.ndarray:
    """(..., N, N) -> (N, N, ..., 1)."""
    return np.moveaxis(log_transition, (-2, -1), (0, 1))[..., None]


def logsumexp(values: np.ndarray, axis: int) -> np.ndarray:
    """Log of the summed exponentials; -inf where all are. SciPy's costs ten times more on arrays as small as these."""
    top = values.max(axis=axis, keepdims=True)
    top = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):
        return np.log(np.exp(values - top).sum(axis=axis)) + np.squeeze(top, axis=axis)
