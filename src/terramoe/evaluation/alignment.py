"""What does the routing follow? Mutual information between experts and classes, beside what chance would give."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.metrics import mutual_info_score


@dataclass(frozen=True)
class Alignment:
    """How experts and classes go together.

    Attributes:
        table: (K, E) pixel counts, rows classes, columns experts.
        information: mutual information in nats.
        share: information over the smaller of the two entropies: 1 if one determines the other.
        chance: mean information when expert ids are shuffled over items, and its 95th percentile.
        p_value: share of shuffles (with the observation itself) that reach the observed information.
    """

    table: np.ndarray
    information: float
    share: float
    chance: tuple[float, float]
    p_value: float


def class_expert_alignment(
    classes: np.ndarray,
    experts: np.ndarray,
    items: np.ndarray,
    *,
    num_classes: int,
    num_experts: int,
    draws: int = 200,
    seed: int = 0,
) -> Alignment:
    """Compare classes and experts pixel by pixel.

    All pixels of one window share one decision, so shuffling pixels would call every routing informative; expert ids
    are shuffled over the windows instead.

    Args:
        classes: (N,) in 1..K. experts: (N,) in 0..E-1. items: (N,) id of the routed item that a pixel belongs to.
    """
    table = _table(classes, experts, num_classes, num_experts)
    information = _information(table)
    _, first, item_of_pixel = np.unique(items, return_index=True, return_inverse=True)
    expert_of_item = experts[first]
    generator = np.random.default_rng(seed)
    shuffled = np.array(
        [
            _information(
                _table(classes, generator.permutation(expert_of_item)[item_of_pixel], num_classes, num_experts)
            )
            for _ in range(draws)
        ]
    )
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
