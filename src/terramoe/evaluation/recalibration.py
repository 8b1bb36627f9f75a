"""Take a model to a place where classes are more or less common than where it was trained, without new labels.

If only the shares of the classes changed, and not how a class looks, the new shares can be read from the model's own
probabilities: Adjusting the Outputs of a Classifier to New a Priori Probabilities: A Simple Procedure, 2002,
doi:10.1162/089976602753284446. That needs honest probabilities, so a temperature is fitted first. If a class looks
different in the new place, the shares found are wrong, and nothing here can tell.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from terramoe.errors import DataError
from terramoe.evaluation.temperature import fit_temperature, soften

ROUNDS = 10_000  # of EM, at most; it slows down where classes look alike


@dataclass(frozen=True)
class Recalibration:
    """What turns the logits of a model into probabilities that fit a new place.

    Attributes:
        temperature: of the softmax.
        old, new: (K,) shares of the classes where the model was trained, and in the new place.
    """

    temperature: float
    old: np.ndarray
    new: np.ndarray

    def apply(self, logits: np.ndarray) -> np.ndarray:
        """(N, K) logits -> (N, K) probabilities."""
        return adjust_shares(soften(logits, self.temperature), self.old, self.new)


def recalibrate(
    new_logits: np.ndarray, old_shares: np.ndarray, validation_logits: np.ndarray, validation_truth: np.ndarray
) -> Recalibration:
    """Fit a temperature on validation pixels, then the class shares of a new place on its unlabelled pixels.

    Args:
        new_logits: (N, K) of the new place.
        old_shares: (K,) share of each class among the training pixels, as the loss weighed them.
        validation_logits, validation_truth: (M, K) and (M,) in 1..K, held out where the model was trained.

    Raises:
        DataError: no validation pixel, or a class without a share.
    """
    temperature = fit_temperature(validation_logits, validation_truth)
    new_shares = class_shares(soften(new_logits, temperature), old_shares)
    return Recalibration(temperature, np.asarray(old_shares, dtype=np.float64), new_shares)


def class_shares(probability: np.ndarray, old_shares: np.ndarray) -> np.ndarray:
    """Shares of the classes among unlabelled items by expectation maximisation: (N, K), (K,) -> (K,).

    Raises:
        DataError: a class without a share: the model cannot know it.
    """
    old = np.asarray(old_shares, dtype=np.float64)
    if (old <= 0).any():
        raise DataError(
            f"classes {(np.flatnonzero(old <= 0) + 1).tolist()} have no share",
            where="class shares",
            fix="leave out classes that were not trained",
        )
    shares = old
    for _ in range(ROUNDS):
        update = adjust_shares(probability, old, shares).mean(0)
        if np.abs(update - shares).max() < 1e-9:
            return update
        shares = update
    return shares


def adjust_shares(probability: np.ndarray, old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Probabilities (N, K) under old class shares (K,) -> under new ones."""
    weighed = probability * (np.asarray(new) / np.asarray(old))
    return weighed / weighed.sum(axis=1, keepdims=True)
