"""Scores of predicted values, from sums over blocks of rows, so that they can be compared over blocks and seeds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from terramoe.evaluation.comparison import Verdict, verdict_of
from terramoe.evaluation.intervals import Interval
from terramoe.evaluation.two_way import Estimate, estimate

LEVEL = 0.9  # of the interval whose coverage is counted
ROPE = 1.0  # percent of the root mean squared error that make no practical difference, unless said otherwise
_N, _TRUTH, _SQUARE, _ERROR, _ABSOLUTE, _SQUARED_ERROR, _COVERED = range(7)


@dataclass(frozen=True)
class ValueScores:
    """Scores of one target, in its unit.

    Attributes:
        rmse: with 95 % interval over blocks and seeds. mae, bias: of prediction minus truth. r2: share of variance.
        coverage: share of rows within the interval that should hold 90 %. rows: counted.
    """

    rmse: Interval
    mae: float
    bias: float
    r2: float
    coverage: float
    rows: int


@dataclass(frozen=True)
class ValueComparison:
    """Model A against model B.

    Attributes:
        difference: of the root mean squared error, in percent of B's, mean over targets; negative if A is better.
        per_seed: the same of each seed.
        verdict, p_value: see ``comparison.Comparison``; "better" means a smaller error.
        rope: percent.
    """

    difference: Interval
    per_seed: tuple[float, ...]
    verdict: Verdict
    p_value: float
    rope: float


def block_moments(truth: np.ndarray, prediction: np.ndarray, std: np.ndarray, block: np.ndarray) -> np.ndarray:
    """Sums that every score can be made of.

    Args:
        truth, prediction, std: (N, T); rows with a NaN in truth or prediction count for nothing in that target.
        block: (N,) ids.

    Returns:
        (blocks, T, 7), blocks in the order of their ids.
    """
    error = prediction - truth
    known = np.isfinite(error)
    reach = stats.norm.ppf(0.5 + LEVEL / 2) * std
    parts = (np.ones_like(truth), truth, truth**2, error, np.abs(error), error**2, np.abs(error) <= reach)
    rows = np.stack([np.where(known, part, 0.0) for part in parts], axis=-1)
    _, index = np.unique(block, return_inverse=True)
    sums = np.zeros((index.max(initial=-1) + 1, *rows.shape[1:]))
    np.add.at(sums, index.ravel(), rows)
    return sums


def value_scores(moments: np.ndarray, seed_of_row: np.ndarray, block_of_row: np.ndarray) -> list[ValueScores]:
    """Scores of each target from moments (rows, T, 7), a row for one block of one seed."""
    found = []
    for target in range(moments.shape[1]):
        own = moments[:, target]
        total = own.sum(0)
        count = max(total[_N], 1)
        error = estimate(_rmse, own, seed_of_row, block_of_row)
        spread = total[_SQUARE] - total[_TRUTH] ** 2 / count
        found.append(
            ValueScores(
                rmse=_above_zero(error),
                mae=float(total[_ABSOLUTE] / count),
                bias=float(total[_ERROR] / count),
                r2=float(1 - total[_SQUARED_ERROR] / spread) if spread > 0 else float("nan"),
                coverage=float(total[_COVERED] / count),
                rows=int(total[_N]),
            )
        )
    return found


def compare_values(
    moments_a: np.ndarray, moments_b: np.ndarray, seed_of_row: np.ndarray, block_of_row: np.ndarray, rope: float = ROPE
) -> ValueComparison:
    """Compare two models on the same blocks; moments (rows, T, 7), row for row the same block of the same seed."""
    both = np.stack([moments_a, moments_b], axis=1)
    found = estimate(_change, both, seed_of_row, block_of_row)
    return ValueComparison(
        difference=found.interval(),
        per_seed=tuple(float(_change(both[seed_of_row == s].sum(0))) for s in np.unique(seed_of_row)),
        verdict=verdict_of(_negative(found.interval()), rope),
        p_value=found.p_value,
        rope=rope,
    )


def _rmse(moments: np.ndarray) -> np.ndarray:
    """(..., 7) -> (...)."""
    return np.sqrt(moments[..., _SQUARED_ERROR] / np.maximum(moments[..., _N], 1e-300))


def _change(pair: np.ndarray) -> np.ndarray:
    """(..., 2, T, 7) -> (...) change of the error in percent, mean over targets."""
    error = _rmse(pair)
    return 100 * (error[..., 0, :] / np.maximum(error[..., 1, :], 1e-300) - 1).mean(axis=-1)


def _above_zero(found: Estimate) -> Interval:
    whole = found.interval()
    return Interval(whole.value, max(whole.low, 0.0), whole.high)


def _negative(interval: Interval) -> Interval:
    return Interval(-interval.value, -interval.high, -interval.low)
