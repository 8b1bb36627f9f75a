"""Did routing find the regimes that a simulated world was made of? Normalised mutual information beside the best.

With fewer experts than regimes not even a perfect router reaches 1, so the figure is divided by the best that E experts
can do. Unlike ``alignment``, which asks whether routing follows classes at all, this asks how much of a known truth it
recovered.
"""

from __future__ import annotations

import numpy as np
from sklearn.metrics import normalized_mutual_info_score

from terramoe.errors import DataError

MOST_REGIMES = 12  # the exact search visits every subset of the regimes


def nmi(regime: np.ndarray, expert: np.ndarray) -> float:
    """2 I / (H(regime) + H(expert)), from 0 to 1: 1 where each determines the other, 0 where one of them is constant.

    Information theoretic measures for clusterings comparison, 2010, Journal of Machine Learning Research 11.

    Args:
        regime, expert: integers of one shape.
    """
    if regime.shape != expert.shape or regime.size == 0:
        raise DataError(
            f"regimes {regime.shape} and experts {expert.shape}", where="nmi", fix="give one expert a pixel, and pixels"
        )
    regime, expert = regime.ravel(), expert.ravel()
    if (regime == regime[0]).all() or (expert == expert[0]).all():
        return 0.0  # nothing is known, or nothing is to be known; scikit-learn calls two constants a match
    return float(normalized_mutual_info_score(regime, expert))


def best_possible(regime: np.ndarray, num_experts: int) -> float:
    """The highest NMI that any assignment of pixels to ``num_experts`` experts reaches; 1 if every regime can have one.

    Mutual information is convex in the assignment probabilities and the sum of entropies is concave, so their ratio is
    quasi-convex and largest where whole regimes go to one expert. There the information is the entropy of the experts'
    loads; the exact search over all groupings of the regimes finds the most even one.

    Raises:
        DataError: a single regime or expert, with which there is nothing to find, or more than 12 regimes.
    """
    if num_experts < 2:
        raise DataError(f"{num_experts} experts", where="best_possible", fix="give at least 2")
    _, counts = np.unique(regime, return_counts=True)
    if not 2 <= len(counts) <= MOST_REGIMES:
        raise DataError(
            f"{len(counts)} regimes occur", where="best_possible", fix=f"use pixels of 2 to {MOST_REGIMES} regimes"
        )
    shares = counts / counts.sum()
    loads = _highest_entropy(shares, min(num_experts, len(shares)))
    return 2 * loads / (_terms(shares).sum() + loads)


def regime_recovery(routing_expert_ids: np.ndarray, regime: np.ndarray, num_experts: int) -> float:
    """NMI over the best possible: 0 if the routing says nothing of the regime, 1 if no router could say more.

    Args:
        routing_expert_ids: each pixel's top expert, 0..E-1; negative where none is known, which leaves the pixel out.
        regime: integers of the same shape.

    Raises:
        DataError: shapes that differ, an expert beyond E, see ``best_possible``.
    """
    if routing_expert_ids.shape != regime.shape or routing_expert_ids.max(initial=-1) >= num_experts:
        raise DataError(
            f"experts {routing_expert_ids.shape} up to {routing_expert_ids.max(initial=-1)} of {num_experts}, "
            f"regimes {regime.shape}",
            where="regime_recovery",
            fix="give maps of one shape, with experts 0..E-1",
        )
    routed = routing_expert_ids >= 0
    return nmi(regime[routed], routing_expert_ids[routed]) / best_possible(regime[routed], num_experts)


def _terms(shares: np.ndarray) -> np.ndarray:
    """-p log p of each share."""
    return -shares * np.log(np.where(shares > 0, shares, 1.0))


def _highest_entropy(shares: np.ndarray, groups: int) -> float:
    """Entropy of the loads when the shares are dealt to groups as evenly as can be: a table over all subsets."""
    subsets = np.arange(1 << len(shares))
    load = (subsets[:, None] >> np.arange(len(shares)) & 1) @ shares
    alone = _terms(np.minimum(load, 1.0))  # the entropy term of a subset that is one group
    best = alone.copy()  # of a subset dealt to the groups so far
    for _ in range(groups - 1):
        more = best.copy()
        for group in subsets[1:]:
            rest = subsets[subsets & group == 0]
            more[rest | group] = np.maximum(more[rest | group], alone[group] + best[rest])
        best = more
    return float(best[-1])
