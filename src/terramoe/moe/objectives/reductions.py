"""What the objectives share: means over valid items, shares of choices, entropies that stay finite at zero."""

from __future__ import annotations

import torch
from torch import Tensor

from terramoe.errors import RoutingError
from terramoe.moe.routing import Routing


def at_least_float32(x: Tensor) -> Tensor:
    """The same values in float32 or better."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def mean_over(items: Tensor, values: Tensor) -> Tensor:
    """Mean of ``values`` (T, ...) over the rows where ``items`` (T,) is True; 0 where there are none."""
    picked = torch.where(items.view(-1, *[1] * (values.ndim - 1)), values, 0.0)
    return picked.sum(0) / items.sum().clamp_min(1)


def mean_prob(routing: Routing) -> Tensor:
    """(E,) P: mean probability of each expert over valid items. Differentiable."""
    return mean_over(routing.valid(), routing.probs)


def choice_share(routing: Routing) -> Tensor:
    """(E,) f: share of all choices, of every rank and before capacity, that went to each expert. No gradient."""
    return routing.demand().to(routing.probs.dtype) / max(routing.expert.numel(), 1)


def distributions(routing: Routing) -> Tensor:
    """(T, E): probabilities of valid items divided by their sum (a sigmoid link leaves it open), 0 elsewhere."""
    probs = torch.where(routing.valid()[:, None], routing.probs, 0.0)
    total = probs.sum(-1, keepdim=True)
    return probs / torch.where(total > 0, total, 1.0)


def entropy(p: Tensor) -> Tensor:
    """-sum p log p over the last dimension, in nats. The gradient is finite where p is 0, as a sparse link gives."""
    return -(p * p.clamp_min(torch.finfo(p.dtype).tiny).log()).sum(-1)


def group_ids(groups: Tensor, num_experts: int, asker: str) -> Tensor:
    """``groups`` (E,), the group of each expert, checked: ids 0 to G - 1, none left out."""
    if groups.shape != (num_experts,) or groups.is_floating_point() or groups.dtype == torch.bool:
        raise RoutingError(
            f"groups have shape {tuple(groups.shape)} and type {groups.dtype}",
            where=asker,
            fix=f"give one integer group id for each of the {num_experts} experts",
        )
    if groups.min() < 0 or (torch.bincount(groups) == 0).any():
        raise RoutingError(
            f"group ids are {groups.unique().tolist()}", where=asker, fix="number the groups 0, 1, 2 ... without a gap"
        )
    return groups.to(torch.int64)


def sum_by_group(values: Tensor, groups: Tensor) -> Tensor:
    """Values (..., E) summed over the experts of each group: (..., G). Differentiable."""
    return values.new_zeros(*values.shape[:-1], int(groups.max()) + 1).index_add(-1, groups, values)
