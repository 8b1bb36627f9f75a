"""How uncertain is a difference between two trained systems? Both the places tested and the trainings are samples.

Seeds that test the same blocks are no new places, and blocks tested by one training are no new trainings. A bootstrap
over blocks alone takes the trained models as given: it says whether these two models differ, not whether the two
methods do, and with seed effects it calls equal methods different in up to 40 % of the cases. So the variance over
seeds and the variance over blocks are added. What a single cell (one block of one seed) contributes is counted twice
then; taking it off once, as in Robust Inference With Multiway Clustering, 2011, doi:10.1198/jbes.2010.07136, is
sharper with many seeds but too bold with three to eight of them. The degrees of freedom say that few seeds, or few
blocks, make the variance itself uncertain: An Approximate Distribution of Estimates of Variance Components, 1946,
doi:10.2307/3002019. A permutation test over seeds would need no such approximation, but its smallest p-value with
five seeds is 0.06.

What neither covers: blocks that lie so close that their errors are alike, and folds whose training sets overlap.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from terramoe.evaluation.intervals import Interval, Statistic

STEP = 1e-3  # relative weight by which a cell is raised and lowered; the error of the derivative is its square


@dataclass(frozen=True)
class Estimate:
    """An estimate with its uncertainty: (estimate - truth) / error follows Student's t.

    Attributes:
        value, error: the estimate and its standard error, in one unit.
        freedom: degrees of freedom; 0 if there is a single block and a single seed, which tell nothing about error.
        limit: largest value that is possible at all, to both sides of 0.
    """

    value: float
    error: float
    freedom: float
    limit: float = np.inf

    def interval(self, level: float = 0.95) -> Interval:
        """Two-sided interval, never beyond ``limit``."""
        if self.freedom == 0:
            return Interval(self.value, -self.limit, self.limit)
        reach = self.error * stats.t.ppf(0.5 + level / 2, self.freedom)
        low, high = np.clip([self.value - reach, self.value + reach], -self.limit, self.limit)
        return Interval(self.value, float(low), float(high))

    def above(self, bound: float) -> float:
        """How sure one may be that the truth lies above a bound, 0..1; from a flat prior, its probability."""
        if self.freedom == 0:
            return 0.5
        return float(stats.t.sf((bound - self.value) / max(self.error, 1e-12), self.freedom))

    @property
    def p_value(self) -> float:
        """Two-sided, of the hypothesis that the truth is 0."""
        return 2 * min(self.above(0), 1 - self.above(0))


def estimate(
    statistic: Statistic, counts: np.ndarray, seed_of_row: np.ndarray, block_of_row: np.ndarray, limit: float = np.inf
) -> Estimate:
    """A statistic of the summed counts, with its error over seeds and blocks.

    Args:
        statistic: (..., *shape) counts -> (...).
        counts: (rows, *shape), a row for one block of one seed.
        seed_of_row, block_of_row: (rows,) ids. Seeds may test all blocks, or each its own fold of them.
    """
    influence = influences(statistic, counts)
    parts, freedoms = zip(*(_one_way(influence, way) for way in (seed_of_row, block_of_row)), strict=True)
    variance = sum(parts)
    spread = sum(part**2 / freedom for part, freedom in zip(parts, freedoms, strict=True) if freedom)
    freedom = variance**2 / spread if spread > 0 else max(freedoms)
    return Estimate(float(statistic(counts.sum(0))), float(np.sqrt(variance)), float(freedom), limit)


def influences(statistic: Statistic, counts: np.ndarray) -> np.ndarray:
    """(rows,) how much the statistic owes to each row: its derivative by the row's weight (infinitesimal jackknife).

    Sums to 0 for statistics that do not change when all counts are doubled.
    """
    total = counts.sum(0).astype(np.float64)
    return (statistic(total + STEP * counts) - statistic(total - STEP * counts)) / (2 * STEP)


def _one_way(influence: np.ndarray, way: np.ndarray) -> tuple[float, int]:
    """Variance over the groups of one way, and its degrees of freedom; 0 and 0 for a single group."""
    _, group = np.unique(way, return_inverse=True)
    sums = np.bincount(group, weights=influence)
    if len(sums) < 2:
        return 0.0, 0
    return float((sums**2).sum() * len(sums) / (len(sums) - 1)), len(sums) - 1
