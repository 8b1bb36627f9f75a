"""Selectors whose number of experts depends on the item."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from terramoe.errors import RoutingError
from terramoe.moe.links import sparsemax
from terramoe.moe.routing import RouteInput
from terramoe.moe.selectors.pairs import Pairs, pairs_from_mask


@dataclass(frozen=True)
class TopP:
    """The fewest experts whose probabilities sum to at least p: hard items get more.

    Source: Harder Tasks Need More Experts: Dynamic Routing in MoE Models, 2024, arXiv 2403.07652 (p = 0.4).
    """

    p: float
    needs = "probs"
    couples_items = False

    def __post_init__(self) -> None:
        if not 0 < self.p <= 1:
            raise RoutingError(f"p = {self.p}", where="selector TopP", fix="use 0 < p <= 1")

    def __call__(self, choice: Tensor, inp: RouteInput) -> Pairs:
        """Probabilities (T, E) -> pairs, at least one per item."""
        ordered, experts = choice.detach().sort(dim=-1, descending=True, stable=True)
        before = ordered.cumsum(-1) - ordered  # mass of the better experts
        # p = 1 means all: rounding may let a prefix of a softmax reach 1 early.
        used = before < self.p if self.p < 1 else torch.ones_like(ordered, dtype=torch.bool)
        used[..., :1] = True
        return pairs_from_mask(torch.zeros_like(used).scatter(-1, experts, used), choice, inp.mask)


@dataclass(frozen=True)
class Threshold:
    """Experts that reach a share of the best one's score: score >= (1 - tau) * max.

    Source: Exploiting Activation Sparsity with Dense to Dynamic-k Mixture-of-Experts Conversion, 2023, arXiv
    2310.04361. Scores are norms or probabilities (>= 0), so the rule ignores their scale; tau = 1 takes all.
    """

    tau: float
    needs = "probs"
    couples_items = False

    def __post_init__(self) -> None:
        if not 0 <= self.tau <= 1:
            raise RoutingError(f"tau = {self.tau}", where="selector Threshold", fix="use 0 <= tau <= 1")

    def __call__(self, choice: Tensor, inp: RouteInput) -> Pairs:
        """Scores (T, E) -> pairs, at least one per item."""
        best = choice.detach().amax(-1, keepdim=True)
        chosen = choice >= (1 - self.tau) * best
        return pairs_from_mask(chosen | (choice == best), choice, inp.mask)


@dataclass(frozen=True)
class Support:
    """Experts with a weight above 0, at most ``most`` of them; for links that give exact zeros (sparsemax, relu).

    Args:
        most: largest number of experts of an item (adaptive k); None for no limit.
        of_logits: take the support of sparsemax(choice), so that a bias on logits moves it.
    """

    most: int | None = None
    of_logits: bool = False
    couples_items = False

    def __post_init__(self) -> None:
        if self.most is not None and self.most < 1:
            raise RoutingError(f"most = {self.most}", where="selector Support", fix="use at least 1, or None")

    @property
    def needs(self) -> str:
        return "logits" if self.of_logits else "probs"

    def __call__(self, choice: Tensor, inp: RouteInput) -> Pairs:
        """Weights or logits (T, E) -> pairs; an item may have none."""
        weights = sparsemax(choice) if self.of_logits else choice
        pairs = pairs_from_mask(weights > 0, weights, inp.mask)
        if self.most is None:
            return pairs
        keep = pairs.rank < self.most
        return Pairs(pairs.item[keep], pairs.expert[keep], pairs.rank[keep])
