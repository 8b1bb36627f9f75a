"""Has the world changed? Drift of the routing's load, of features, and of single bands.

All three take the block as the unit, since the pixels of a block are alike: taking pixels as independent would raise
an alarm at every new scene. An alarm says that the new data are not drawn as the reference was, not that the model
has become worse. With fewer than ten blocks on either side only large changes are seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import special, stats
from scipy.spatial import distance

from terramoe.errors import DataError
from terramoe.evaluation.holm import holm
from terramoe.evaluation.intervals import merge_blocks


@dataclass(frozen=True)
class Drift:
    """One test for drift.

    Attributes:
        statistic: how far the new data lie from the reference; 0 is equal.
        threshold: what data without drift exceed with probability ``level``.
        p_value: share of draws without drift that reach the statistic.
        drifted: the statistic is above the threshold.
    """

    statistic: float
    threshold: float
    p_value: float
    drifted: bool


def load_drift(
    reference: np.ndarray, new: np.ndarray, *, level: float = 0.05, draws: int = 999, seed: int = 0
) -> Drift:
    """Jensen-Shannon divergence between two load histograms, with a threshold from the reference alone.

    The threshold is a bootstrap: two sets of blocks, as many as there are of each kind, both drawn from the reference.

    Args:
        reference, new: (blocks, E) routed pairs of every expert in each block.

    Raises:
        DataError: fewer than two reference blocks, or no new one.
    """
    _require(len(reference), len(new))
    generator = np.random.default_rng(seed)
    old_draws, new_draws = (
        generator.multinomial(blocks, np.full(len(reference), 1 / len(reference)), size=draws) @ reference
        for blocks in (len(reference), len(new))
    )
    narrow = len(reference) / (len(reference) - 1)  # a sample varies less about its own mean than about the truth
    return _judged(_divergence(reference.sum(0), new.sum(0)), narrow * _divergence(old_draws, new_draws), level)


def feature_drift(
    reference: np.ndarray,
    new: np.ndarray,
    reference_blocks: np.ndarray,
    new_blocks: np.ndarray,
    *,
    level: float = 0.05,
    draws: int = 999,
    most: int = 2000,
    seed: int = 0,
) -> Drift:
    """Energy distance between two sets of embeddings, against chance that deals the blocks anew to the two sets.

    Energy Statistics: A Class of Statistics Based on Distances, 2013, doi:10.1016/j.jspi.2013.03.018. It is 0 only if
    the two distributions are equal, so it sees any change, not only one of the mean.

    Args:
        reference, new: (n, D) and (m, D); each dimension is scaled by its spread over both.
        reference_blocks, new_blocks: (n,) and (m,) ids; the same id on both sides means two blocks.
        most: items drawn at random from a larger set: time and memory grow with the square.

    Raises:
        DataError: fewer than two reference blocks, or no new item.
    """
    generator = np.random.default_rng(seed)
    sides = []
    for values, blocks in ((reference, reference_blocks), (new, new_blocks)):
        kept = np.sort(generator.permutation(len(values))[:most])
        sides.append((values[kept], np.unique(blocks[kept], return_inverse=True)[1]))
    (x, x_block), (y, y_block) = sides
    count, others = (len(np.unique(block)) for block in (x_block, y_block))
    _require(count, others)
    both = np.concatenate([x, y]).astype(np.float64)
    both /= np.maximum(both.std(0), 1e-12)
    member = np.eye(count + others)[np.concatenate([x_block, y_block + count])]  # (items, blocks)
    between = member.T @ distance.cdist(both, both) @ member  # (blocks, blocks) sums of distances
    observed = np.arange(count + others) < count
    dealt = np.array([generator.permutation(observed) for _ in range(draws)])
    values = _energy(np.vstack([observed, dealt]).astype(np.float64), between, member.sum(0))
    return _judged(float(values[0]), values[1:], level)


def band_drift(
    reference: np.ndarray, new: np.ndarray, reference_blocks: np.ndarray, new_blocks: np.ndarray
) -> np.ndarray:
    """(bands,) p-values that a band has not changed, corrected for the number of bands (Holm).

    Kolmogorov-Smirnov's test on one value a block, its mean, because it takes its values as independent.

    Args:
        reference, new: (n, bands) and (m, bands). reference_blocks, new_blocks: (n,) and (m,) ids.
    """
    _require(len(np.unique(reference_blocks)), len(np.unique(new_blocks)))
    old_means, new_means = (
        merged / np.bincount(np.unique(blocks, return_inverse=True)[1])[:, None]
        for merged, blocks in (
            (merge_blocks(reference, reference_blocks), reference_blocks),
            (merge_blocks(new, new_blocks), new_blocks),
        )
    )
    return holm(np.array([stats.ks_2samp(a, b).pvalue for a, b in zip(old_means.T, new_means.T, strict=True)]))


def _require(reference: int, new: int) -> None:
    if reference < 2 or new < 1:
        raise DataError(
            f"{reference} reference and {new} new blocks",
            where="drift",
            fix="use at least 2 reference blocks and 1 new",
        )


def _judged(found: float, by_chance: np.ndarray, level: float) -> Drift:
    threshold = float(np.quantile(by_chance, 1 - level, method="higher"))
    p_value = float((1 + (by_chance >= found - 1e-12).sum()) / (len(by_chance) + 1))
    return Drift(found, threshold, p_value, found > threshold)


def _divergence(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Jensen-Shannon divergence of two (..., E) histograms, in nats: 0 .. log 2."""
    p, q = (counts / np.maximum(counts.sum(-1, keepdims=True), 1) for counts in (a, b))
    middle = (p + q) / 2
    return (special.rel_entr(p, middle) + special.rel_entr(q, middle)).sum(-1) / 2


def _energy(first: np.ndarray, between: np.ndarray, size: np.ndarray) -> np.ndarray:
    """(draws,) energy distance for (draws, blocks) that say with 1 or 0 whether a block belongs to the first set."""
    second = 1 - first
    n, m = first @ size, second @ size
    to_first, to_second = first @ between, second @ between
    across = (to_first * second).sum(1) / (n * m)
    return 2 * across - (to_first * first).sum(1) / n**2 - (to_second * second).sum(1) / m**2
