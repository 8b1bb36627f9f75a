"""Bootstrap over spatial blocks: pixels of a block are alike, so that drawing pixels would give too short intervals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from terramoe.evaluation.metrics import confusion

Statistic = Callable[[np.ndarray], np.ndarray]  # counts (..., K, K) -> (...) or (..., K)


@dataclass(frozen=True)
class Interval:
    """An estimate with the 2.5 and 97.5 percentiles of its bootstrap distribution."""

    value: float
    low: float
    high: float


def block_confusions(truth: np.ndarray, prediction: np.ndarray, blocks: np.ndarray, classes: int) -> np.ndarray:
    """(blocks, K, K) counts, one matrix per block that occurs; inputs are 1-D and of one length."""
    return np.stack([confusion(truth[blocks == b], prediction[blocks == b], classes) for b in np.unique(blocks)])


def merge_blocks(counts: np.ndarray, block_of_row: np.ndarray) -> np.ndarray:
    """Sum rows of the same spatial block: (rows, ...) -> (blocks, ...).

    Several seeds may test the same block; their rows are no independent draws, so a bootstrap must take them together.
    """
    return np.stack([counts[block_of_row == block].sum(0) for block in np.unique(block_of_row)])


def resample(counts: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """(blocks, ...) counts -> (draws, ...): sums over blocks drawn with replacement.

    Two models are compared on the same draws by stacking their counts: (blocks, 2, K, K).
    """
    generator = np.random.default_rng(seed)
    picked = generator.integers(len(counts), size=(draws, len(counts)))
    times = np.stack([np.bincount(row, minlength=len(counts)) for row in picked]).astype(np.float64)
    return np.tensordot(times, counts.astype(np.float64), axes=1)


def interval(
    statistic: Statistic, counts: np.ndarray, *, draws: int = 2000, seed: int = 0
) -> Interval | list[Interval]:
    """Percentile interval of a statistic of the summed counts (blocks, K, K); a list if it gives one value a class."""
    value = statistic(counts.sum(0))
    with np.errstate(invalid="ignore"):
        low, high = _percentiles(statistic(resample(counts, draws, seed)))
    if np.ndim(value) == 0:
        return Interval(float(value), float(low), float(high))
    return [Interval(float(v), float(a), float(b)) for v, a, b in zip(value, low, high, strict=True)]


def _percentiles(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Over the first axis, leaving out draws in which the statistic does not exist."""
    columns = values.reshape(len(values), -1).T
    found = [column[~np.isnan(column)] for column in columns]
    ends = np.array([np.percentile(f, [2.5, 97.5]) if f.size else [np.nan, np.nan] for f in found])
    shape = values.shape[1:]
    return ends[:, 0].reshape(shape), ends[:, 1].reshape(shape)
