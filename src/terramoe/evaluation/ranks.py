"""Several systems on several scenes: average ranks, and how far apart two must be.

Statistical Comparisons of Classifiers over Multiple Data Sets, 2006, Journal of Machine Learning Research 7, 1-30.
The scenes must be independent of each other. Blocks of one scene may stand for scenes once each block's counts are
summed over the seeds; folds and seeds may not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from terramoe.errors import DataError


@dataclass(frozen=True)
class Ranks:
    """Systems ranked on every scene.

    Attributes:
        names: (k,) of the systems.
        average: (k,) average rank, 1 is best; ties share the mean of their ranks.
        distance: Nemenyi's critical difference: systems whose average ranks lie closer cannot be told apart at 5 %.
        p_value: Friedman's test that all systems are equal. Unless it is small, no pair should be called different.
        scenes: how many.
    """

    names: tuple[str, ...]
    average: np.ndarray
    distance: float
    p_value: float
    scenes: int


def rank_systems(names: Sequence[str], scores: np.ndarray) -> Ranks:
    """Rank k systems on n scenes.

    Args:
        scores: (n, k), higher is better.

    Raises:
        DataError: fewer than three systems or two scenes.
    """
    scenes, systems = scores.shape
    if systems < 3 or scenes < 2:
        raise DataError(
            f"{systems} systems on {scenes} scenes",
            where="ranks",
            fix="use at least 3 systems and 2 scenes; for two systems use compare",
        )
    average = stats.rankdata(-scores, axis=1).mean(0)
    spread = stats.studentized_range.ppf(0.95, systems, np.inf) / np.sqrt(2)
    distance = spread * np.sqrt(systems * (systems + 1) / (6 * scenes))
    all_tied = np.ptp(scores, axis=1).max() == 0  # Friedman's statistic is 0 / 0 then
    p_value = 1.0 if all_tied else stats.friedmanchisquare(*scores.T).pvalue
    return Ranks(tuple(names), average, float(distance), float(p_value), scenes)
