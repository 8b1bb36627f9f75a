"""What if the model may say "I do not know"? Risk against coverage.

Selective Classification for Deep Neural Networks, 2017, arXiv 1705.08500.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from terramoe.errors import DataError


@dataclass(frozen=True)
class RiskCoverage:
    """The curve of a model that answers only where it is surest.

    Attributes:
        coverage: (N,) share of items answered, 1/N .. 1.
        risk: (N,) share of errors among those. Items of equal confidence share their errors, so that the curve does
            not depend on the order of the items.
        aurc: area under the curve, the mean risk over coverages; 0 is best.
        excess: aurc above that of a confidence that ranks every correct item before every wrong one; 0 for a
            perfect ranking, however often the model errs.
    """

    coverage: np.ndarray
    risk: np.ndarray
    aurc: float
    excess: float

    def risk_at(self, coverage: float) -> float:
        """Risk when at least this share of items, 0..1, is answered."""
        return float(self.risk[np.searchsorted(self.coverage, coverage - 1e-12)])

    def coverage_at(self, risk: float) -> float:
        """The largest share that can be answered with at most this risk; 0 if none."""
        within = self.coverage[self.risk <= risk]
        return float(within.max(initial=0))


def risk_coverage(confidence: np.ndarray, correct: np.ndarray) -> RiskCoverage:
    """From confidences (N,), higher is surer, and bool (N,) whether the answer is right.

    Raises:
        DataError: no item.
    """
    items = len(confidence)
    if items == 0:
        raise DataError("no item", where="risk and coverage", fix="give at least one prediction")
    wrong = 1.0 - np.asarray(correct, dtype=np.float64)
    _, tie = np.unique(-np.asarray(confidence), return_inverse=True)
    shared = (np.bincount(tie, weights=wrong) / np.bincount(tie))[tie]
    answered = np.arange(1, items + 1)
    risk = np.cumsum(shared[np.argsort(tie, kind="stable")]) / answered
    best = np.cumsum(np.sort(wrong)) / answered
    return RiskCoverage(answered / items, risk, float(risk.mean()), float(risk.mean() - best.mean()))
