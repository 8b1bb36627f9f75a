"""The (item, expert) pairs that a selector returns, and the two ways to build them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Pairs(NamedTuple):
    """N chosen pairs, rank-major then item-minor. ``item``, ``expert`` and ``rank`` are (N,) int64.

    ``fixed_k`` is k where the rows are exactly every item times k choices, else None; it allows faster gathers.
    """

    item: Tensor
    expert: Tensor
    rank: Tensor
    fixed_k: int | None = None

    def take(self, values: Tensor) -> Tensor:
        """Values (T, E) of the chosen pairs: (N,). Differentiable."""
        if self.fixed_k is None:
            return values[self.item, self.expert]
        # gather, because its backward is a scatter-add and not the slow general index_put
        return values.T.gather(0, self.expert.view(self.fixed_k, -1)).reshape(-1)

    def total(self, chosen: Tensor, num_items: int) -> Tensor:
        """For each pair the sum of ``chosen`` (N,) over all pairs of its item: (N,). Differentiable."""
        if self.fixed_k is None:
            return chosen.new_zeros(num_items).index_add(0, self.item, chosen)[self.item]
        return chosen.view(self.fixed_k, -1).sum(0).expand(self.fixed_k, -1).reshape(-1)


def pairs_from_choices(choices: Tensor, mask: Tensor | None = None) -> Pairs:
    """Pairs from (T, k) expert ids, column r holding the choice of rank r; masked items get no pair."""
    items, k = choices.shape
    item = torch.arange(items, device=choices.device).expand(k, -1).reshape(-1)
    rank = torch.arange(k, device=choices.device)[:, None].expand(-1, items).reshape(-1)
    expert = choices.T.reshape(-1)
    if mask is None:
        return Pairs(item, expert, rank, fixed_k=k)
    keep = mask[item]
    return Pairs(item[keep], expert[keep], rank[keep])


def pairs_from_mask(chosen: Tensor, order_by: Tensor, mask: Tensor | None = None) -> Pairs:
    """Pairs from a (T, E) bool choice, each item's experts ranked by ``order_by`` (T, E), ties to the lower index."""
    if mask is not None:
        chosen = chosen & mask[:, None]
    ranked = torch.where(chosen, order_by.detach(), -torch.inf).sort(dim=-1, descending=True, stable=True).indices
    used = torch.arange(chosen.shape[1], device=chosen.device)[:, None] < chosen.sum(-1)  # (E, T): rank < count
    rank, item = used.nonzero(as_tuple=True)
    return Pairs(item, ranked[item, rank], rank)
