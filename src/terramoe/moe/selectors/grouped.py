"""Selectors that wrap others: by groups of experts, among the available ones, or drawn from the best."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from terramoe.errors import RoutingError
from terramoe.moe.routing import RouteInput
from terramoe.moe.selectors.pairs import Pairs, pairs_from_choices
from terramoe.moe.selectors.topk import TopK, ordered_top


@dataclass(frozen=True)
class GroupLimited:
    """k experts from the best ``limit`` groups only (experts of a group stand together).

    A group's score is the sum of its ``best_of`` largest scores, or of all with ``best_of=None``. DeepSeek-V3 Technical
    Report, 2024, arXiv 2412.19437: best_of=2 of the biased sigmoid scores; HetuMoE's SAM gate: limit=1, best_of=None.
    """

    k: int
    groups: int
    limit: int
    best_of: int | None = 2
    needs: Literal["probs", "logits"] = "probs"
    couples_items = False

    def __call__(self, choice: Tensor, inp: RouteInput) -> Pairs:
        """Scores (T, E) -> k experts per item. RoutingError if groups do not divide E or hold fewer than k."""
        experts = choice.shape[1]
        size = experts // self.groups if self.groups >= 1 else 0
        if size * self.groups != experts or not 1 <= self.limit <= self.groups or not 1 <= self.k <= size * self.limit:
            raise RoutingError(
                f"k = {self.k} from {self.limit} of {self.groups} groups of {experts} experts",
                where="selector GroupLimited",
                fix="let groups divide the experts, and keep k within the groups that may be used",
            )
        by_group = choice.detach().unflatten(-1, (self.groups, size))
        best = by_group if self.best_of is None else by_group.topk(min(self.best_of, size), dim=-1).values
        allowed = torch.zeros_like(best[..., 0], dtype=torch.bool)
        allowed.scatter_(1, ordered_top(best.sum(-1), self.limit), True)
        masked = torch.where(allowed.repeat_interleave(size, dim=1), choice, -torch.inf)
        return TopK(self.k)(masked, inp)


@dataclass(frozen=True)
class TopOfEachGroup:
    """The best expert of each of g groups: k prototypes of top-1 (M6-T, 2021, arXiv 2105.15082).

    The paper takes the softmax inside each group; with raw weights use ``GroupedSoftmax`` as the link.
    """

    groups: int
    needs = "order"
    couples_items = False

    def __call__(self, choice: Tensor, inp: RouteInput) -> Pairs:
        """Scores (T, E) -> one expert from each group. RoutingError if groups do not divide E."""
        experts = choice.shape[1]
        if self.groups < 1 or experts % self.groups:
            raise RoutingError(
                f"{self.groups} groups of {experts} experts", where="selector TopOfEachGroup", fix="let groups divide E"
            )
        size = experts // self.groups
        best = [ordered_top(part, 1) + g * size for g, part in enumerate(choice.split(size, dim=1))]
        return pairs_from_choices(torch.cat(best, dim=1), inp.mask)


@dataclass(frozen=True)
class GroupedSoftmax:
    """A link: softmax inside each of g groups of experts, so that each group's probabilities sum to 1."""

    groups: int

    def __call__(self, logits: Tensor) -> Tensor:
        """(T, E) -> (T, E). RoutingError if groups do not divide E."""
        if self.groups < 1 or logits.shape[-1] % self.groups:
            raise RoutingError(
                f"{self.groups} groups of {logits.shape[-1]} experts",
                where="link GroupedSoftmax",
                fix="let groups divide E",
            )
        return logits.unflatten(-1, (self.groups, -1)).softmax(-1).flatten(-2)


@dataclass(frozen=True)
class Available:
    """Another selector, but only among the experts that the item may use: a missing sensor's experts are out.

    ``key`` names a (T, E) bool tensor among the keys. The choice alone is masked, not the weights; renormalise them if
    they shall sum to 1. An item with fewer available experts than k uses those.
    """

    inner: object
    key: str = "available"

    @property
    def needs(self) -> str:
        return self.inner.needs

    @property
    def couples_items(self) -> bool:
        return self.inner.couples_items

    def __call__(self, choice: Tensor, inp: RouteInput) -> Pairs:
        """Scores (T, E) -> pairs of available experts."""
        available = inp.key(self.key, "selector Available")
        if available.shape != choice.shape:
            raise RoutingError(
                f"'{self.key}' has shape {tuple(available.shape)}, expected {tuple(choice.shape)}",
                where="selector Available",
                fix="give one bool per item and expert",
            )
        pairs = self.inner(torch.where(available.bool(), choice, -torch.inf), inp)
        keep = available.bool()[pairs.item, pairs.expert]
        return pairs if bool(keep.all()) else Pairs(pairs.item[keep], pairs.expert[keep], pairs.rank[keep])


@dataclass(frozen=True)
class SampleFromTop:
    """k experts drawn at random from the item's best ``pool``: every pair among them learns to work together.

    Drawn anew at each call; use ``TopK`` in evaluation. Elastic MoE: Unlocking the Inference-Time Scalability of
    Mixture-of-Experts, 2025, arXiv 2509.21892. Reconstruction: the draw is uniform.
    """

    k: int
    pool: int
    needs = "order"
    couples_items = False

    def __call__(self, choice: Tensor, inp: RouteInput) -> Pairs:
        """Scores (T, E) -> k distinct experts per item, best first."""
        if not 1 <= self.k <= self.pool <= choice.shape[1]:
            raise RoutingError(
                f"k = {self.k} from the best {self.pool} of {choice.shape[1]} experts",
                where="selector SampleFromTop",
                fix="use 1 <= k <= pool <= E",
            )
        best = ordered_top(choice, self.pool)
        if self.k == self.pool:
            return pairs_from_choices(best, inp.mask)
        drawn = torch.rand(best.shape, device=best.device).topk(self.k, dim=1).indices.sort(dim=1).values
        return pairs_from_choices(best.gather(1, drawn), inp.mask)
