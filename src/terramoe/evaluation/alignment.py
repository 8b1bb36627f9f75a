"""What does the routing follow? Mutual information between experts and classes, beside what chance would give."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.metrics import mutual_info_score

from terramoe.evaluation.information import MapShift


@dataclass(frozen=True)
class Alignment:
    """How experts and classes go together.

    Attributes:
        table: (K, E) pixel counts, rows classes, columns experts.
        information: mutual information in nats.
        share: information over the smaller of the two entropies: 1 if one determines the other.
        chance: mean information when the experts have nothing to do with the classes, and its 95th percentile.
        p_value: share of such draws (with the observation itself) that reach the observed information.
    """

    table: np.ndarray
    information: float
    share: float
    chance: tuple[float, float]
    p_value: float


def class_expert_alignment(
    classes: np.ndarray,
    experts: np.ndarray,
    items: np.ndarray | None = None,
    *,
    num_classes: int,
    num_experts: int,
    positions: np.ndarray | None = None,
    draws: int = 200,
    seed: int = 0,
) -> Alignment:
    """Compare classes and experts pixel by pixel.

    All pixels of one window share one decision, so shuffling pixels would call every routing informative. Neighbouring
    windows are alike too: with ``positions`` chance moves the whole map of experts (``MapShift``). Without them expert
    ids are shuffled over the items, which is right only for items that are independent of each other.

    Args:
        classes: (N,) in 1..K. experts: (N,) in 0..E-1.
        items: (N,) id of the routed item that a pixel belongs to; not read where positions are given.
        positions: (N, 2) row and column of each pixel.
    """
    table = _table(classes, experts, num_classes, num_experts)
    information = _information(table)
    generator = np.random.default_rng(seed)
    if positions is None:
        _, first, item_of_pixel = np.unique(items, return_index=True, return_inverse=True)
        by_chance = (experts[generator.permutation(first)[item_of_pixel]] for _ in range(draws))
    else:
        shift = MapShift(positions)
        by_chance = (experts[shift.draw(generator)] for _ in range(draws))
    shuffled = np.array([_information(_table(classes, drawn, num_classes, num_experts)) for drawn in by_chance])
    smaller = min(_entropy(table.sum(0)), _entropy(table.sum(1)))
    return Alignment(
        table=table,
        information=information,
        share=information / smaller if smaller > 0 else 0.0,
        chance=(float(shuffled.mean()), float(np.percentile(shuffled, 95))),
        p_value=float((1 + (shuffled >= information - 1e-12).sum()) / (draws + 1)),
    )


def _table(classes: np.ndarray, experts: np.ndarray, num_classes: int, num_experts: int) -> np.ndarray:
    flat = np.bincount((classes - 1) * num_experts + experts, minlength=num_classes * num_experts)
    return flat.reshape(num_classes, num_experts)


def _information(table: np.ndarray) -> float:
    return float(mutual_info_score(None, None, contingency=table)) if table.sum() else 0.0


def _entropy(counts: np.ndarray) -> float:
    p = counts[counts > 0] / max(counts.sum(), 1)
    return float(-(p * np.log(p)).sum())
