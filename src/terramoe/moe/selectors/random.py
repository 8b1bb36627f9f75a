"""Random choice: the control that a learned router must beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from terramoe.moe.routing import RouteInput
from terramoe.moe.selectors.pairs import Pairs, pairs_from_choices
from terramoe.moe.selectors.topk import TopK, ordered_top


@dataclass(frozen=True)
class RandomK:
    """Each item uses k experts picked by a fixed hash of its position: random, yet the same at every call.

    The choice ignores the scores but depends on nothing outside the call, so that evaluation stays deterministic.
    """

    k: int
    seed: int = 0
    needs = "order"
    couples_items = False

    def __call__(self, choice: Tensor, inp: RouteInput) -> Pairs:
        """Scores (T, E), of which only the shape is used -> pairs. RoutingError when k is not in 1..E."""
        k = TopK(self.k).checked_k(choice.shape[-1], "selector RandomK")
        generator = torch.Generator().manual_seed(self.seed)
        noise = torch.rand(choice.shape, generator=generator).to(choice.device)
        return pairs_from_choices(ordered_top(noise, k), inp.mask)
