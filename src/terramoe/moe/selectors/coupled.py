"""Selectors that look at all items of a group at once: experts choose items, or loads are made equal."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from terramoe.errors import RoutingError
from terramoe.moe.routing import RouteInput
from terramoe.moe.selectors.pairs import Pairs, pairs_from_choices, pairs_from_mask
from terramoe.moe.selectors.topk import TopK, ordered_top


@dataclass(frozen=True)
class ExpertChoice:
    """Each expert takes its C = ceil(T * per_item / E) best items of a group; no balance loss is needed.

    The probabilities are normalised over experts, and an item may get no expert or many. Source: Mixture-of-Experts
    with Expert Choice Routing, 2022, arXiv 2202.09368 (per_item = 2). Not causal: items compete.
    """

    per_item: float = 2.0
    needs = "probs"
    couples_items = True

    def __post_init__(self) -> None:
        if not self.per_item > 0:
            raise RoutingError(f"per_item = {self.per_item}", where="selector ExpertChoice", fix="use a value above 0")

    def __call__(self, choice: Tensor, inp: RouteInput) -> Pairs:
        """Probabilities (T, E) -> pairs; every expert has C of each group's valid items (all, if C exceeds them)."""
        chosen = torch.zeros_like(choice, dtype=torch.bool)
        for items in _groups(choice, inp):
            capacity = min(math.ceil(items.numel() * self.per_item / choice.shape[1]), items.numel())
            if capacity:
                best = ordered_top(choice[items].T, capacity)  # (E, C) places among the group's items
                chosen[items[best], torch.arange(choice.shape[1], device=choice.device)[:, None]] = True
        return pairs_from_mask(chosen, choice)


@dataclass(frozen=True)
class Balanced:
    """The assignment of items to experts of greatest total score under equal loads (differing by at most 1).

    Exact, by scipy's linear assignment; the cost grows with the cube of a group's items, so use groups of some hundred.
    For evaluation the source takes ``TopK(1)``. Source: BASE Layers, 2021, arXiv 2103.16716.
    """

    needs = "order"
    couples_items = True

    def __call__(self, choice: Tensor, inp: RouteInput) -> Pairs:
        """Scores (T, E) -> one expert per valid item."""
        expert = torch.zeros(choice.shape[0], dtype=torch.int64)
        for items in _groups(choice, inp):
            scores = choice[items].detach().double().cpu()
            # Every expert stands ceil(n / E) times; the copies beyond floor(n / E) cost so much that each expert gets
            # the floor first.
            low, high = items.numel() // choice.shape[1], -(-items.numel() // choice.shape[1])
            if high == 0:
                continue
            penalty = torch.zeros(high)
            penalty[low:] = (scores.amax() - scores.amin()) * items.numel() + 1
            columns = (scores[:, :, None] - penalty).flatten(1)
            rows, column = linear_sum_assignment(columns.numpy(), maximize=True)
            expert[items.cpu()[torch.from_numpy(rows)]] = torch.from_numpy(column) // high
        return pairs_from_choices(expert.to(choice.device)[:, None], inp.mask)


@dataclass(frozen=True)
class Sinkhorn:
    """Top-k of scores made doubly balanced by Sinkhorn's iteration: nearly equal loads, cheap for many items.

    Source: Unified Scaling Laws for Routed Language Models, 2022, arXiv 2202.01169 (S-BASE). The weights still come
    from the unbalanced probabilities.
    """

    k: int = 1
    iterations: int = 50
    needs = "logits"
    couples_items = True

    def __call__(self, choice: Tensor, inp: RouteInput) -> Pairs:
        """Logits (T, E) -> k experts per valid item. RoutingError when k is not in 1..E."""
        k = TopK(self.k).checked_k(choice.shape[-1], "selector Sinkhorn")
        balanced = choice.detach().double().clone()
        for items in _groups(choice, inp):
            z = balanced[items]
            for _ in range(self.iterations if items.numel() > 1 else 0):  # one item alone can be balanced with nothing
                z = z - z.logsumexp(1, keepdim=True)
                z = z - z.logsumexp(0, keepdim=True)
            balanced[items] = z
        return pairs_from_choices(ordered_top(balanced, k), inp.mask)


def _groups(choice: Tensor, inp: RouteInput) -> list[Tensor]:
    """Indices of the valid items of each group."""
    valid = torch.ones_like(choice[:, 0], dtype=torch.bool) if inp.mask is None else inp.mask
    if inp.group is None:
        return [valid.nonzero().squeeze(1)]
    return [(valid & (inp.group == g)).nonzero().squeeze(1) for g in inp.group[valid].unique()]
