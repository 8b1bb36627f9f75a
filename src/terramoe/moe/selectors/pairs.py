"""The (item, expert) pairs that a selector returns, and the two ways to build them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Pairs(NamedTuple):
    """N chosen pairs, rank-major then item-minor. All are (N,) int64."""

    item: Tensor
    expert: Tensor
    rank: Tensor


def pairs_from_choices(choices: Tensor, mask: Tensor | None = None) -> Pairs:
    """Pairs from (T, k) expert ids, column r holding the choice of rank r; masked items get no pair."""
    items, k = choices.shape
    item = torch.arange(items, device=choices.device).repeat(k)
    rank = torch.arange(k, device=choices.device).repeat_interleave(items)
    expert = choices.T.reshape(-1)
    if mask is None:
        return Pairs(item, expert, rank)
    keep = mask[item]
    return Pairs(item[keep], expert[keep], rank[keep])
