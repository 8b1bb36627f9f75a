"""Counts which experts are chosen together, so that only such pairs are compared."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from terramoe.errors import RoutingError
from terramoe.moe.routing import Routing


class PairCounter(nn.Module):
    """How many items chose both of two experts since the pair was last reset (SimSMoE, 2024, arXiv 2406.15883).

    The training loop asks ``due``, adds ``expert_similarity_hinge`` of such a pair to the loss, and resets it.
    Reconstruction: the published code counts "co-selections" up to a threshold; that items are counted, and not
    steps, is filled in.

    Args:
        num_experts: E.
    """

    counts: Tensor

    def __init__(self, num_experts: int) -> None:
        super().__init__()
        self.register_buffer("counts", torch.zeros(num_experts, num_experts, dtype=torch.int64))

    @torch.no_grad()
    def after_step(self, step: int, routings: Sequence[Routing]) -> None:
        """Add the pairs of this step, as chosen before capacity."""
        for routing in routings:
            if routing.num_experts != self.counts.shape[0]:
                raise RoutingError(
                    f"a routing over {routing.num_experts} experts for a counter of {self.counts.shape[0]}",
                    where="PairCounter",
                    fix="pass the routings of the layer that the counter belongs to",
                )
            chosen = torch.zeros_like(routing.logits, dtype=torch.float64)
            chosen[routing.item, routing.expert] = 1
            together = (chosen.T @ chosen).to(self.counts)
            self.counts += together - together.diagonal().diag()

    def due(self, threshold: int) -> list[tuple[int, int]]:
        """Pairs i < j that at least ``threshold`` items chose together, the most frequent first, ties by index."""
        if threshold < 1:
            raise RoutingError(f"threshold is {threshold}", where="PairCounter", fix="use at least 1")
        upper = self.counts.triu(1)
        pairs = (upper >= threshold).nonzero().tolist()
        return sorted(((i, j) for i, j in pairs), key=lambda pair: -int(upper[pair]))

    @torch.no_grad()
    def reset(self, pair: tuple[int, int]) -> None:
        """Count this pair from 0 again."""
        i, j = pair
        self.counts[i, j] = self.counts[j, i] = 0
