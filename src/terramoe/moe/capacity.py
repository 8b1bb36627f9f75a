"""Capacity: how many pairs an expert accepts, and who goes when it is full."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from terramoe.errors import RoutingError
from terramoe.moe.routing import Routing

Capacity = Callable[[Routing, Tensor | None], Routing]


@dataclass(frozen=True)
class FixedCapacity:
    """Each expert takes at most ``ceil(factor * pairs / E)`` pairs of a group; the rest are dropped and counted.

    First choices come before second choices. Inside a rank the order is the items' position (GShard, 2020, arXiv
    2006.16668), their largest probability (batch-prioritised routing: Scaling Vision with Sparse Mixture of Experts,
    2021, arXiv 2106.05974) or random. A dropped pair contributes 0: the block's residual carries the item.

    Args:
        factor: 1.0 is exactly enough under perfect balance.
        minimum: smallest capacity per expert.
        order: "position", "priority" or "random" (drawn anew at each call).
        multiple_of: round the capacity up to a multiple of this.
    """

    factor: float = 1.25
    minimum: int = 1
    order: Literal["position", "priority", "random"] = "position"
    multiple_of: int = 1
    couples_items = True

    def __post_init__(self) -> None:
        if not 0 < self.factor < math.inf or self.minimum < 1 or self.multiple_of < 1:
            raise RoutingError(
                f"capacity factor {self.factor}, minimum {self.minimum}, multiple of {self.multiple_of}",
                where="FixedCapacity",
                fix="use a finite factor above 0, and a minimum and a multiple of at least 1",
            )
        if self.order not in ("position", "priority", "random"):
            raise RoutingError(
                f"order '{self.order}'", where="FixedCapacity", fix="use 'position', 'priority' or 'random'"
            )

    def limit(self, pairs: int, experts: int) -> int:
        """Capacity of an expert for a group with that many pairs."""
        needed = max(self.minimum, math.ceil(round(self.factor * pairs / experts, 9)))  # 1.1 * 50 is 55, not above
        return -(-needed // self.multiple_of) * self.multiple_of

    def __call__(self, routing: Routing, group: Tensor | None = None) -> Routing:
        """Sets ``kept`` and ``slot`` of the routing; ``group`` is (T,) ids or None for a single group."""
        if routing.item.numel() == 0:
            return replace(routing, slot=torch.full_like(routing.item, -1))
        group_of_item = torch.zeros_like(routing.logits[:, 0], dtype=torch.int64)
        if group is not None:
            group_of_item = torch.unique(group, return_inverse=True)[1]
        pair_group = group_of_item[routing.item]
        pairs_per_group = torch.bincount(pair_group, minlength=int(group_of_item.max()) + 1).tolist()
        limits = [self.limit(n, routing.num_experts) for n in pairs_per_group]
        capacity = torch.tensor(limits, device=routing.item.device)[pair_group]
        place = queue_place(routing, pair_group, self.order)
        kept = place < capacity
        return replace(routing, kept=routing.kept & kept, slot=torch.where(kept, place, -1))


@dataclass(frozen=True)
class AdaptiveCapacity:
    """Just enough: the largest load of the batch, at most ``most`` times a balanced one (Tutel, 2022, arXiv
    2206.03382).

    Without ``most`` nothing is dropped, and only the slots are set.
    """

    most: float | None = None
    order: Literal["position", "priority"] = "position"
    couples_items = True

    def __post_init__(self) -> None:
        if self.most is not None and not self.most > 0:
            raise RoutingError(f"most = {self.most}", where="AdaptiveCapacity", fix="use a factor above 0, or None")

    def __call__(self, routing: Routing, group: Tensor | None = None) -> Routing:
        """Sets ``kept`` and ``slot`` of the routing."""
        factor = routing.num_experts if self.most is None else self.most  # E times balance holds any load
        return FixedCapacity(factor, order=self.order)(routing, group)


@dataclass(frozen=True)
class RandomSecond:
    """Keeps a second choice with probability min(1, 2 w), w its renormalised weight; then the inner capacity.

    Source: GShard, 2020, arXiv 2006.16668. Random in training; set ``enabled=False`` for evaluation.
    """

    inner: Capacity
    enabled: bool = True
    couples_items = True

    def __call__(self, routing: Routing, group: Tensor | None = None) -> Routing:
        """Drops some rows of rank 1 and above."""
        if self.enabled:
            stays = torch.rand_like(routing.weight) < 2 * routing.weight.detach()
            keep = (routing.rank == 0) | stays
            rows = {name: getattr(routing, name)[keep] for name in ("item", "expert", "rank", "weight", "kept")}
            routing = replace(routing, **rows, fixed_k=None)
        return self.inner(routing, group)


@dataclass(frozen=True)
class RenormalisedAfterDrop:
    """Lets the weights of an item's kept pairs sum to 1 after the inner capacity has dropped some.

    GShard and Switch renormalise before the drop, DeepSpeed's top-2 after it; outputs differ, so it is a part.
    """

    inner: Capacity
    couples_items = True

    def __call__(self, routing: Routing, group: Tensor | None = None) -> Routing:
        """Rescales the weights of kept pairs."""
        routing = self.inner(routing, group)
        kept = torch.where(routing.kept, routing.weight, 0.0)
        total = kept.new_zeros(routing.num_items).index_add(0, routing.item, kept)
        scale = total.clamp_min(torch.finfo(total.dtype).tiny)[routing.item]
        return replace(routing, weight=torch.where(routing.kept, routing.weight / scale, routing.weight))


def queue_place(routing: Routing, pair_group: Tensor, order_by: str) -> Tensor:
    """(N,) place of each pair in the queue before its expert, counted inside its group."""
    order = torch.arange(routing.item.numel(), device=routing.item.device)
    if order_by != "position":
        by_item = routing.probs.amax(-1) if order_by == "priority" else torch.rand_like(routing.probs[:, 0])
        order = torch.argsort(by_item[routing.item], descending=True, stable=True)
        order = order[torch.argsort(routing.rank[order], stable=True)]
    queue = pair_group * routing.num_experts + routing.expert
    order = order[torch.argsort(queue[order], stable=True)]
    sizes = torch.bincount(queue)
    first = torch.repeat_interleave(sizes.cumsum(0) - sizes, sizes)
    place = torch.empty_like(order)
    place[order] = torch.arange(order.numel(), device=order.device) - first
    return place
