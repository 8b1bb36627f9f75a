"""Is one model better than another? Paired over the same blocks and seeds, with a region of practical equivalence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from terramoe.evaluation.intervals import Interval, Statistic
from terramoe.evaluation.metrics import average_accuracy, overall_accuracy
from terramoe.evaluation.two_way import Estimate, estimate

Verdict = Literal["better", "tie", "worse", "cannot tell"]
ROPE = 0.5  # points of overall accuracy that make no practical difference, unless said otherwise


@dataclass(frozen=True)
class Comparison:
    """Model A against model B, in points (hundredths of accuracy).

    Attributes:
        overall, average: difference A - B of overall and of average accuracy, with 95 % interval.
        per_seed: difference of overall accuracy of each seed.
        rope: half-width of the region of practical equivalence, fixed beforehand.
        above, inside, below: probability that the difference of overall accuracy lies beyond +rope, within, beyond
            -rope.
        verdict: "better" if the whole interval lies above +rope, "worse" if below -rope, "tie" if inside;
            otherwise "cannot tell".
        sentence: the verdict for people.
        p_value: of the hypothesis that there is no difference of overall accuracy, two-sided.
        blocks: number of different blocks tested.
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
    p_value: float
    blocks: int


def compare(
    name_a: str,
    name_b: str,
    counts_a: np.ndarray,
    counts_b: np.ndarray,
    seed_of_row: np.ndarray,
    block_of_row: np.ndarray,
    *,
    rope: float = ROPE,
) -> Comparison:
    """Compare two models on the same blocks.

    Intervals, probabilities and p-value hold for new blocks and new trainings of both models; see ``two_way``. From a
    single seed nothing can be learnt about trainings: then they hold for these two trained models only, and the
    sentence says so.

    Args:
        counts_a, counts_b: (rows, K, K) confusion counts, row for row the same block of the same seed.
        seed_of_row, block_of_row: (rows,) the seed and the spatial block of a row; a block that several seeds test
            counts as one block.
        rope: in points of overall accuracy.
    """
    both = np.stack([counts_a, counts_b], axis=1)
    overall = _difference(overall_accuracy, both, seed_of_row, block_of_row)
    average = _difference(average_accuracy, both, seed_of_row, block_of_row)
    seeds = np.unique(seed_of_row)
    verdict = verdict_of(overall.interval(), rope)
    above, below = overall.above(rope), 1 - overall.above(-rope)
    return Comparison(
        overall=overall.interval(),
        average=average.interval(),
        per_seed=tuple(float(_points(overall_accuracy)(both[seed_of_row == s].sum(0))) for s in seeds),
        rope=rope,
        above=above,
        inside=1 - above - below,
        below=below,
        verdict=verdict,
        sentence=_sentence(name_a, name_b, overall.interval(), rope, verdict, len(seeds)),
        p_value=overall.p_value,
        blocks=len(np.unique(block_of_row)),
    )


def _points(statistic: Statistic) -> Statistic:
    """Difference of a share between the two models of a pair (..., 2, K, K), in points."""
    return lambda pair: 100 * (statistic(pair[..., 0, :, :]) - statistic(pair[..., 1, :, :]))


def _difference(statistic: Statistic, both: np.ndarray, seeds: np.ndarray, blocks: np.ndarray) -> Estimate:
    return estimate(_points(statistic), both, seeds, blocks, limit=100)


def verdict_of(difference: Interval, rope: float) -> Verdict:
    if difference.low > rope:
        return "better"
    if difference.high < -rope:
        return "worse"
    if -rope <= difference.low and difference.high <= rope:
        return "tie"
    return "cannot tell"


def _sentence(a: str, b: str, difference: Interval, rope: float, verdict: Verdict, seeds: int) -> str:
    numbers = f"{difference.value:+.1f} points of overall accuracy [{difference.low:+.1f}, {difference.high:+.1f}]"
    endings = {
        "better": f"{a} is better than {b} by more than {rope:g} points.",
        "worse": f"{a} is worse than {b} by more than {rope:g} points.",
        "tie": f"{a} and {b} are equal for practical purposes (within {rope:g} points).",
        "cannot tell": f"too uncertain to call {a} better, equal or worse than {b}; more seeds or blocks would tell.",
    }
    one = " One seed: this holds for these two trained models, not for new trainings." if seeds == 1 else ""
    return f"{verdict.capitalize()}: {numbers}; {endings[verdict]}{one}"
