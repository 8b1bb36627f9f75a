"""The Mixture-of-Experts layer: a router, a bank of experts, and an executor that brings them together."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from terramoe.errors import RoutingError
from terramoe.moe import links, weighing
from terramoe.moe.executors import get_executor
from terramoe.moe.experts import Bank
from terramoe.moe.routing import RouteInput, Routing
from terramoe.moe.selectors import Pairs, TopK

Link = Callable[[Tensor], Tensor]
Selector = Callable[[Tensor, Tensor | None], Pairs]
Weigh = Callable[[Tensor, Tensor, Pairs], Tensor]
Capacity = Callable[[Routing, Tensor | None], Routing]


class MoELayer(nn.Module):
    """``scorer -> link -> selector -> weigh -> capacity -> executor(bank) -> y``.

    The layer returns its routing beside its output; it stores nothing. A named method of the literature is a choice
    of these parts.

    Args:
        scorer: ``RouteInput -> Scores`` (logits).
        bank: the experts.
        selector: ``(choice, mask) -> Pairs``; top-2 unless given.
        link: logits to probabilities; softmax unless given.
        weigh: combine weight of a chosen pair; the raw probability unless given.
        capacity: sets what is dropped; None drops nothing.
        executor: "loop", "grouped", "gather" or "dense"; they differ in speed only.
    """

    def __init__(
        self,
        scorer: nn.Module,
        bank: Bank,
        *,
        selector: Selector | None = None,
        link: Link = links.softmax,
        weigh: Weigh = weighing.raw,
        capacity: Capacity | None = None,
        executor: str = "grouped",
    ) -> None:
        super().__init__()
        self.scorer, self.bank = scorer, bank
        self.selector = TopK(min(2, bank.num_experts)) if selector is None else selector
        self.link, self.weigh, self.capacity = link, weigh, capacity
        self.executor = get_executor(executor)

    def route(self, inp: RouteInput) -> Routing:
        """Decide for T items, without running an expert."""
        scores = self.scorer(inp)
        if scores.logits.shape[-1] != self.bank.num_experts:
            raise RoutingError(
                f"the scorer gives {scores.logits.shape[-1]} logits for {self.bank.num_experts} experts",
                where="MoELayer",
                fix="build scorer and bank with the same number of experts",
            )
        with torch.autocast(scores.logits.device.type, enabled=False):
            probs = self.link(scores.logits)
            # Choose by logits: every link is increasing, and two logits may differ where their probabilities round
            # to the same float.
            pairs = self.selector(scores.logits, inp.mask)
            routing = Routing(
                logits=scores.logits,
                probs=probs,
                item=pairs.item,
                expert=pairs.expert,
                rank=pairs.rank,
                weight=self.weigh(probs, scores.logits, pairs),
                kept=torch.ones_like(pairs.item, dtype=torch.bool),
                mask=inp.mask,
                clean_logits=scores.clean,
                noise_std=scores.noise_std,
            )
            return routing if self.capacity is None else self.capacity(routing, inp.group)

    def forward(
        self,
        x: Tensor,
        routing: Routing | None = None,
        *,
        mask: Tensor | None = None,
        group: Tensor | None = None,
        keys: Mapping[str, Tensor] | None = None,
    ) -> tuple[Tensor, Routing]:
        """Route and run.

        Args:
            x: items (T, D) or (T, ..., D).
            routing: use this decision instead of making one (shared routers, replay).
            mask, group, keys: see ``RouteInput``.

        Returns:
            y (T, ..., D_out), 0 where no expert was reached, and the routing that made it.
        """
        if routing is None:
            routing = self.route(RouteInput(x, mask, group, keys or {}))
        elif routing.num_items != x.shape[0]:
            raise RoutingError(
                f"the given routing is for {routing.num_items} items, x has {x.shape[0]}",
                where="MoELayer",
                fix="replay a routing on the items that it was made for",
            )
        return self.executor(x, routing, self.bank), routing
