"""Is one model better than another? Paired over the same blocks and seeds, with a region of practical equivalence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from terramoe.evaluation.intervals import Interval, Statistic, merge_blocks, resample
from terramoe.evaluation.metrics import average_accuracy, overall_accuracy

Verdict = Literal["better", "tie", "worse", "cannot tell"]


@dataclass(frozen=True)
class Comparison:
    """Model A against model B, in points (hundredths of accuracy).

    Attributes:
        overall, average: difference A - B of overall and of average accuracy, with 95 % interval.
        per_seed: difference of overall accuracy of each seed.
        rope: half-width of the region of practical equivalence, fixed beforehand.
        above, inside, below: share of the bootstrap draws of ``overall`` beyond +rope, within, beyond -rope.
        verdict: "better" if the whole interval lies above +rope, "worse" if below -rope, "tie" if inside;
            otherwise "cannot tell".
        sentence: the verdict for people.
    """

    overall: Interval
    average: Interval
    per_seed: tuple[float, ...]
    rope: float
    above: float
    inside: float
    below: float
    verdict: Verdict
    sentence: str


def compare(
    name_a: str,
    name_b: str,
    counts_a: np.ndarray,
    counts_b: np.ndarray,
    seed_of_row: np.ndarray,
    block_of_row: np.ndarray,
    *,
    rope: float = 0.5,
    draws: int = 5000,
    seed: int = 0,
) -> Comparison:
    """Compare two models on the same blocks.

    Args:
        counts_a, counts_b: (rows, K, K) confusion counts, row for row the same block of the same seed.
        seed_of_row, block_of_row: (rows,) the seed and the spatial block of a row; a block that several seeds test is
            drawn with all of them.
        rope: in points of overall accuracy.
    """
    both = np.stack([counts_a, counts_b], axis=1)
    sums = resample(merge_blocks(both, block_of_row), draws, seed)
    overall_draws = 100 * (overall_accuracy(sums[:, 0]) - overall_accuracy(sums[:, 1]))
    average_draws = 100 * (average_accuracy(sums[:, 0]) - average_accuracy(sums[:, 1]))
    overall = _interval(_points(overall_accuracy, both.sum(0)), overall_draws)
    average = _interval(_points(average_accuracy, both.sum(0)), average_draws)
    per_seed = tuple(_points(overall_accuracy, both[seed_of_row == s].sum(0)) for s in np.unique(seed_of_row))
    verdict = _verdict(overall, rope)
    return Comparison(
        overall=overall,
        average=average,
        per_seed=per_seed,
        rope=rope,
        above=float((overall_draws > rope).mean()),
        inside=float((np.abs(overall_draws) <= rope).mean()),
        below=float((overall_draws < -rope).mean()),
        verdict=verdict,
        sentence=_sentence(name_a, name_b, overall, rope, verdict),
    )


def _points(statistic: Statistic, pair: np.ndarray) -> float:
    return float(100 * (statistic(pair[0]) - statistic(pair[1])))


def _interval(value: float, draws: np.ndarray) -> Interval:
    low, high = np.percentile(draws, [2.5, 97.5])
    return Interval(value, float(low), float(high))


def _verdict(difference: Interval, rope: float) -> Verdict:
    if difference.low > rope:
        return "better"
    if difference.high < -rope:
        return "worse"
    if -rope <= difference.low and difference.high <= rope:
        return "tie"
    return "cannot tell"


def _sentence(a: str, b: str, difference: Interval, rope: float, verdict: Verdict) -> str:
    numbers = f"{difference.value:+.1f} points of overall accuracy [{difference.low:+.1f}, {difference.high:+.1f}]"
    endings = {
        "better": f"{a} is better than {b} by more than {rope:g} points.",
        "worse": f"{a} is worse than {b} by more than {rope:g} points.",
        "tie": f"{a} and {b} are equal for practical purposes (within {rope:g} points).",
        "cannot tell": f"too uncertain to call {a} better, equal or worse than {b}; more seeds or blocks would tell.",
    }
    return f"{verdict.capitalize()}: {numbers}; {endings[verdict]}"
