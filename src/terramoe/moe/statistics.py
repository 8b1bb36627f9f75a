"""From routings to the numbers that every table carries: load, entropy, effective and dead experts, dropped share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from terramoe.moe.routing import Routing


@dataclass(frozen=True)
class LayerStatistics:
    """What one routed layer did over all batches seen.

    Attributes:
        load: share of the computed pairs that went to each expert, sums to 1 (all 0 if nothing was routed).
        importance: share of the combine weight that each expert got.
        entropy: mean entropy of an item's distribution, in nats; log E means undecided.
        effective_experts: exp of the entropy of ``load``; E when all are used alike.
        dead_experts: experts that no item reached.
        dropped_share: share of chosen pairs that capacity dropped.
        items, pairs: how many were counted.
    """

    load: tuple[float, ...]
    importance: tuple[float, ...]
    entropy: float
    effective_experts: float
    dead_experts: int
    dropped_share: float
    items: int
    pairs: int


@dataclass
class _Sums:
    load: Tensor
    importance: Tensor
    entropy: float = 0.0
    items: int = 0
    pairs: int = 0
    dropped: int = 0


@dataclass
class RoutingMeter:
    """Adds up routings batch by batch: ``meter.update(output.routings)``, then ``meter.compute()``."""

    _sums: dict[str, _Sums] = field(default_factory=dict)

    def update(self, routings: Mapping[str, Routing]) -> None:
        """Count the routings of one forward pass, by layer name."""
        for name, routing in routings.items():
            routing = routing.detach()
            if name not in self._sums:
                zeros = torch.zeros(routing.num_experts, dtype=torch.float64)
                self._sums[name] = _Sums(load=zeros.clone(), importance=zeros.clone())
            sums, valid = self._sums[name], routing.valid()
            sums.load += routing.load().cpu()
            sums.importance += routing.importance().cpu()
            sums.entropy += float(routing.item_entropy()[valid].double().sum())
            sums.items += int(valid.sum())
            sums.pairs += routing.kept.numel()
            sums.dropped += int((~routing.kept).sum())

    def compute(self) -> dict[str, LayerStatistics]:
        """Statistics per layer name."""
        return {name: _finish(sums) for name, sums in self._sums.items()}


def summarise(routings: Mapping[str, Routing]) -> dict[str, LayerStatistics]:
    """Statistics of a single forward pass."""
    meter = RoutingMeter()
    meter.update(routings)
    return meter.compute()


def _finish(sums: _Sums) -> LayerStatistics:
    load = sums.load / sums.load.sum().clamp_min(1)
    importance = sums.importance / sums.importance.sum().clamp_min(torch.finfo(torch.float64).tiny)
    return LayerStatistics(
        load=tuple(load.tolist()),
        importance=tuple(importance.tolist()),
        entropy=sums.entropy / max(sums.items, 1),
        effective_experts=float(torch.special.entr(load).sum().exp()) if sums.load.sum() else 0.0,
        dead_experts=int((sums.load == 0).sum()),
        dropped_share=sums.dropped / max(sums.pairs, 1),
        items=sums.items,
        pairs=sums.pairs,
    )
