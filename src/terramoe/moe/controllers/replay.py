"""Record the choices of one pass and make them again in another, with the weights of the new pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from terramoe.errors import RoutingError
from terramoe.moe.routing import RouteInput, Routing
from terramoe.moe.selectors import Pairs


class ReplaySelector(nn.Module):
    """Chooses as the inner selector does, or as ``pairs`` say while they are set.

    Args:
        inner: ``(choice, inp) -> Pairs``.
    """

    def __init__(self, inner: Callable[[Tensor, RouteInput], Pairs]) -> None:
        super().__init__()
        self.inner = inner
        self.pairs: Pairs | None = None
        self.num_items = 0

    @property
    def needs(self) -> str:
        """What the layer hands over as choice."""
        return self.inner.needs

    @property
    def couples_items(self) -> bool:
        """Whether the choice of an item depends on its batch mates in the same call."""
        return self.inner.couples_items

    def forward(self, choice: Tensor, inp: RouteInput) -> Pairs:
        """Scores (T, E) -> pairs; RoutingError where recorded pairs are for other items or experts, or masked ones."""
        if self.pairs is None:
            return self.inner(choice, inp)
        pairs = self.pairs
        if choice.shape[0] != self.num_items or (pairs.expert >= choice.shape[1]).any():
            raise RoutingError(
                f"the record is for {self.num_items} items, the scores have shape {tuple(choice.shape)}",
                where="ReplaySelector",
                fix="replay a record on the items and the layer that it was made for",
            )
        if inp.mask is not None and not inp.mask[pairs.item].all():
            raise RoutingError(
                "the record routes items that are masked now", where="ReplaySelector", fix="replay with the same mask"
            )
        return pairs


class RecordReplay:
    """Keeps the choices of layers by name and has them made again (routing replay, 2025, arXiv 2510.11370).

    Only who is chosen is replayed. Probabilities and weights come from the logits of the replaying pass, so the
    router still learns; capacity, if any, is applied anew. Records hold for one step: ``after_step`` forgets them.

    Args:
        selectors: the replaying selector of each layer, by any names.
    """

    def __init__(self, selectors: Mapping[str, ReplaySelector]) -> None:
        self.selectors = dict(selectors)
        self.records: dict[str, tuple[Pairs, int]] = {}

    def record(self, routings: Mapping[str, Routing]) -> None:
        """Keep the choices of these layers; RoutingError for a name without a selector."""
        unknown = sorted(set(routings) - set(self.selectors))
        if unknown:
            raise RoutingError(
                f"no replaying selector named {unknown}", where="RecordReplay", fix=f"use {sorted(self.selectors)}"
            )
        for name, routing in routings.items():
            pairs = Pairs(routing.item, routing.expert, routing.rank, routing.fixed_k)
            self.records[name] = (pairs, routing.num_items)

    @contextmanager
    def replaying(self) -> Iterator[None]:
        """Inside the block every layer chooses as recorded; RoutingError where a layer has no record."""
        missing = sorted(set(self.selectors) - set(self.records))
        if missing:
            raise RoutingError(
                f"no record for {missing}", where="RecordReplay", fix="record a pass of all layers first"
            )
        for name, (pairs, items) in self.records.items():
            self.selectors[name].pairs, self.selectors[name].num_items = pairs, items
        try:
            yield
        finally:
            for selector in self.selectors.values():
                selector.pairs, selector.num_items = None, 0

    @torch.no_grad()
    def after_step(self, step: int, routings: Sequence[Routing]) -> None:
        """Forget the records: the next step has other items."""
        self.records.clear()
