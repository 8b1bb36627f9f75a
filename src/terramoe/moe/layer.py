"""The Mixture-of-Experts layer: a router, a bank of experts, and an executor that brings them together."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from terramoe.errors import RoutingError
from terramoe.moe import links, weighing
from terramoe.moe.executors import Executor, get_executor
from terramoe.moe.experts import Bank
from terramoe.moe.routing import RouteInput, Routing
from terramoe.moe.selectors import Pairs, TopK

Link = Callable[[Tensor], Tensor]
Selector = Callable[[Tensor, RouteInput], Pairs]
Weigh = Callable[[Tensor, Tensor, Pairs], Tensor]
Capacity = Callable[[Routing, Tensor | None], Routing]


class MoELayer(nn.Module):
    """``scorer -> link -> selector -> weigh -> capacity -> executor(bank) -> y``.

    The layer returns its routing beside its output; it stores nothing. A named method of the literature is a choice
    of these parts (``recipes``).

    Args:
        scorer: ``RouteInput -> Scores`` (logits).
        bank: the experts.
        selector: ``(choice, inp) -> Pairs``; top-2 unless given.
        link: logits to probabilities; softmax unless given.
        weigh: combine weight of a chosen pair; the raw probability unless given.
        capacity: sets what is dropped; None drops nothing.
        executor: "auto", "loop", "grouped", "gather", "dense", "padded", or a callable; they differ in speed only.
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
        executor: str | Executor = "auto",
    ) -> None:
        super().__init__()
        self.scorer, self.bank = scorer, bank
        self.selector = TopK(min(2, bank.num_experts)) if selector is None else selector
        self.link, self.weigh, self.capacity = link, weigh, capacity
        self.executor = get_executor(executor) if isinstance(executor, str) else executor

    def route(self, inp: RouteInput) -> Routing:
        """Decide for T items, without running an expert."""
        self._check_export()
        scores = self.scorer(inp)
        self._check(scores.logits, inp)
        with torch.autocast(scores.logits.device.type, enabled=False):
            probs = self.link(scores.logits)
            # Where the order is all that counts, choose by logits: every link is increasing, and two logits may
            # differ where their probabilities round to the same float.
            pairs = self.selector(probs if self.selector.needs == "probs" else scores.logits, inp)
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
                keys=inp.keys,
                fixed_k=pairs.fixed_k,
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

        Raises:
            RoutingError: no items; NaN in an item that is not masked; a width, key or routing that does not fit; an
                export (torch.export, ONNX) of a layer whose items depend on each other.
        """
        if x.shape[0] == 0 and not getattr(self.executor, "collective", False):
            raise RoutingError(
                f"the batch is empty: items have shape {tuple(x.shape)}",
                where="MoELayer",
                fix="skip empty batches, or pass at least one item and mask it",
            )
        if routing is None:
            routing = self.route(RouteInput(x, mask, group, keys or {}))
        elif routing.num_items != x.shape[0]:
            raise RoutingError(
                f"the given routing is for {routing.num_items} items, x has {x.shape[0]}",
                where="MoELayer",
                fix="replay a routing on the items that it was made for",
            )
        elif routing.num_experts != self.num_experts:
            raise RoutingError(
                f"the given routing is over {routing.num_experts} experts, the layer has {self.num_experts}",
                where="MoELayer",
                fix="replay a routing on a layer with as many experts",
            )
        return self.executor(x, routing, self.bank), routing

    @property
    def num_experts(self) -> int:
        """E, over all processes where the experts are spread over several."""
        return getattr(self.executor, "num_experts", self.bank.num_experts)

    def _check(self, logits: Tensor, inp: RouteInput) -> None:
        if logits.shape[-1] != self.num_experts:
            raise RoutingError(
                f"the scorer gives {logits.shape[-1]} logits for {self.num_experts} experts",
                where="MoELayer",
                fix="build scorer and bank with the same number of experts",
            )
        if torch.compiler.is_compiling():  # a traced graph cannot raise on values
            return
        if math.isnan(logits.sum().item()):  # cheap; opposite infinities look the same here, so look closer
            bad = logits.isnan().any(-1) & (inp.mask if inp.mask is not None else True)
            if bad.any():
                raise RoutingError(
                    f"{int(bad.sum())} of {bad.numel()} items give NaN logits, first item {int(bad.nonzero()[0])}",
                    where=type(self.scorer).__name__,
                    fix="pass mask= with False for nodata items; in training, lower the learning rate",
                )
        if math.isnan(inp.x.sum().item()):  # a router that reads keys alone does not see it
            bad = inp.x.flatten(1).isnan().any(-1) & (inp.mask if inp.mask is not None else True)
            if bad.any():
                raise RoutingError(
                    f"{int(bad.sum())} of {bad.numel()} items hold NaN, first item {int(bad.nonzero()[0])}",
                    where="MoELayer",
                    fix="pass mask= with False for nodata items",
                )

    def _check_export(self) -> None:
        # torch.compile may break its graph at the counts of a batch; an exported graph of free length cannot.
        exporting = torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling()
        if exporting and (self.capacity is not None or self.selector.couples_items):
            raise RoutingError(
                "what an item gets depends on its batch, which an exported graph cannot hold",
                where=f"MoELayer with {type(self.capacity or self.selector).__name__}",
                fix="export a layer without capacity whose selector looks at one item at a time, such as TopK",
            )
