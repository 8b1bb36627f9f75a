"""Gates that learn nothing: controls of the mixtures whose gate is no layer of the routing core."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from terramoe.mixtures.sequences import Sequences

FINE = 1e3  # rows that differ by a thousandth of a standard deviation draw independently


def draw_experts(rows: np.ndarray, experts: int, seed: int) -> np.ndarray:
    """(n,) an expert for each of the standardised rows (n, D), drawn by a fixed hash of the row.

    Every expert is as likely as any other, neighbours draw independently, and a row draws the same expert in any
    company. The draw follows nothing that a gate could learn.
    """
    direction = np.random.default_rng(seed).standard_normal(rows.shape[1])
    place = (rows * direction).sum(axis=1) * FINE % 1.0
    return np.minimum((place * experts).astype(np.int64), experts - 1)


@dataclass(frozen=True)
class FixedGate:
    """A gate of sequences that stays as it is: every expert alike, or one drawn by the sequence.

    Attributes:
        experts: E.
        seed: of the draw; None weighs all experts alike.
    """

    experts: int
    seed: int | None = None

    def log_proba(self, sequences: Sequences) -> np.ndarray:
        """(S, E) log of the weights; minus infinity where an expert is not asked."""
        if self.seed is None:
            return np.full((len(sequences), self.experts), -np.log(self.experts))
        drawn = draw_experts(sequences.values.reshape(len(sequences), -1), self.experts, self.seed)
        return np.where(np.arange(self.experts) == drawn[:, None], 0.0, -np.inf)

    def fit_step(self, sequences: Sequences, target: np.ndarray, weight: np.ndarray) -> FixedGate:
        """Itself."""
        return self
