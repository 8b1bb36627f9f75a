"""Capacity: how many pairs an expert accepts, and who goes when it is full."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from terramoe.errors import RoutingError
from terramoe.moe.routing import Routing


@dataclass(frozen=True)
class FixedCapacity:
    """Each expert takes at most ``ceil(factor * pairs / E)`` pairs of a group; the rest are dropped and counted.

    First choices come before second choices. Inside a rank the order is the items' position (GShard, 2020, arXiv
    2006.16668) or their largest probability (batch-prioritised routing: Scaling Vision with Sparse Mixture of
    Experts, 2021, arXiv 2106.05974). A dropped pair contributes 0: the block's residual carries the item.

    Args:
        factor: 1.0 is exactly enough under perfect balance.
        minimum: smallest capacity per expert.
        order: "position" or "priority".
    """

    factor: float = 1.25
    minimum: int = 1
    order: Literal["position", "priority"] = "position"

    def __post_init__(self) -> None:
        if not self.factor > 0 or self.minimum < 1:
            raise RoutingError(
                f"capacity factor {self.factor}, minimum {self.minimum}",
                where="FixedCapacity",
                fix="use a factor above 0 and a minimum of at least 1",
            )
        if self.order not in ("position", "priority"):
            raise RoutingError(f"order '{self.order}'", where="FixedCapacity", fix="use 'position' or 'priority'")

    def __call__(self, routing: Routing, group: Tensor | None = None) -> Routing:
        """Sets ``kept`` and ``slot`` of the routing; ``group`` is (T,) ids or None for a single group."""
        if routing.item.numel() == 0:
            return replace(routing, slot=torch.full_like(routing.item, -1))
        group_of_item = torch.zeros_like(routing.logits[:, 0], dtype=torch.int64)
        if group is not None:
            group_of_item = torch.unique(group, return_inverse=True)[1]
        pair_group = group_of_item[routing.item]
        pairs_per_group = torch.bincount(pair_group, minlength=int(group_of_item.max()) + 1).tolist()
        limits = [max(self.minimum, math.ceil(self.factor * n / routing.num_experts)) for n in pairs_per_group]
        capacity = torch.tensor(limits, device=routing.item.device)[pair_group]

        place = self._queue_place(routing, pair_group)
        kept = place < capacity
        return replace(routing, kept=routing.kept & kept, slot=torch.where(kept, place, -1))

    def _queue_place(self, routing: Routing, pair_group: Tensor) -> Tensor:
        """(N,) place of each pair in the queue before its expert, counted inside its group."""
        order = torch.arange(routing.item.numel(), device=routing.item.device)
        if self.order == "priority":
            priority = routing.probs.amax(-1)[routing.item]
            order = torch.argsort(priority, descending=True, stable=True)
            order = order[torch.argsort(routing.rank[order], stable=True)]
        queue = pair_group * routing.num_experts + routing.expert
        order = order[torch.argsort(queue[order], stable=True)]
        sizes = torch.bincount(queue)
        first = torch.repeat_interleave(sizes.cumsum(0) - sizes, sizes)
        place = torch.empty_like(order)
        place[order] = torch.arange(order.numel(), device=order.device) - first
        return place
