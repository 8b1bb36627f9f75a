"""Sets of classes that hold the true one with a chosen probability, whatever the model (split conformal prediction).

The promise is for the average over test items, and it needs calibration items that are drawn as the test items are.
Pixels of one block are alike, so that the number of blocks counts and not that of pixels: with ``blocks`` the promise
is for a pixel of a new block (Distribution-Free Inference with Hierarchical Data, 2023, arXiv 2306.06342).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from terramoe.errors import ConfigError, DataError

Kind = Literal["lac", "aps"]


@dataclass(frozen=True)
class Conformal:
    """A calibrated rule that makes sets.

    Attributes:
        kind: "lac", the smallest sets on average (Least Ambiguous Set-Valued Classifiers With Bounded Error Levels,
            2019, doi:10.1080/01621459.2017.1395341), or "aps", sets that grow with the difficulty of the item
            (Classification with Valid and Adaptive Coverage, 2020, arXiv 2006.02544).
        error: share of items whose set may miss the truth.
        threshold: (K,) largest score with which a class is taken; infinite where calibration was too small to say.
    """

    kind: Kind
    error: float
    threshold: np.ndarray

    def sets(self, probability: np.ndarray, generator: np.random.Generator | None = None) -> np.ndarray:
        """(N, K) probabilities -> (N, K) bool.

        "lac" may give empty sets: none of the classes fits. "aps" gives at least one class and covers a little more
        often than promised, unless a generator lets it drop the last class at random.
        """
        if self.kind == "lac":
            return scores(probability, "lac") <= self.threshold
        u = np.ones(len(probability)) if generator is None else generator.random(len(probability))
        return scores(probability, "aps", u) <= self.threshold


def fit_conformal(
    probability: np.ndarray,
    truth: np.ndarray,
    *,
    error: float = 0.1,
    kind: Kind = "lac",
    per_class: bool = False,
    blocks: np.ndarray | None = None,
    seed: int = 0,
) -> Conformal:
    """Find the threshold on held-out items.

    Args:
        probability: (N, K). truth: (N,) in 1..K.
        error: share of misses allowed, between 0 and 1.
        per_class: keep the promise for every true class by itself (Conditional Validity of Inductive Conformal
            Predictors, 2012, arXiv 1209.2673); rare classes then get wide sets.
        blocks: (N,) ids; None if the items are independent.
        seed: of the random part of "aps" scores.

    Raises:
        ConfigError: an unknown kind, or an error that is no share.
        DataError: no calibration item.
    """
    if kind not in ("lac", "aps") or not 0 < error < 1:
        raise ConfigError(f"kind {kind}, error {error}", where="conformal", fix="use lac or aps, and 0 < error < 1")
    if len(truth) == 0:
        raise DataError("no item to calibrate on", where="conformal", fix="give held-out items")
    u = np.random.default_rng(seed).random(len(truth))
    of_truth = np.take_along_axis(scores(probability, kind, u), (truth - 1)[:, None], axis=1)[:, 0]
    unit = np.arange(len(truth)) if blocks is None else blocks
    if per_class:
        groups = [truth == k + 1 for k in range(probability.shape[1])]
        threshold = np.array([quantile(of_truth[inside], unit[inside], error) for inside in groups])
    else:
        threshold = np.full(probability.shape[1], quantile(of_truth, unit, error))
    return Conformal(kind, error, threshold)


def scores(probability: np.ndarray, kind: Kind, u: np.ndarray | None = None) -> np.ndarray:
    """(N, K) how badly each class fits.

    "lac": one minus its probability. "aps": the probability of all classes down to and with this one, less the share
    ``u`` (N,) of its own.
    """
    if kind == "lac":
        return 1 - probability
    order = np.argsort(-probability, axis=1, kind="stable")
    down_to = np.cumsum(np.take_along_axis(probability, order, axis=1), axis=1)
    summed = np.empty_like(down_to)
    np.put_along_axis(summed, order, down_to, axis=1)
    return summed - u[:, None] * probability


def quantile(values: np.ndarray, unit: np.ndarray, error: float) -> float:
    """The finite-sample quantile: every unit weighs the same, and one more unit, the new one, counts as infinite."""
    _, number, size = np.unique(unit, return_inverse=True, return_counts=True)
    if len(size) == 0:
        return np.inf
    order = np.argsort(values)
    reached = np.cumsum(1 / size[number[order]])  # units at or below each value
    position = np.searchsorted(reached, (1 - error) * (len(size) + 1) - 1e-9)  # rounding
    return float(values[order[position]]) if position < len(values) else np.inf
