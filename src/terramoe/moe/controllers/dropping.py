"""Expert dropout: in each training step some experts of every cluster are out, and their items go to cluster mates."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from terramoe.errors import RoutingError
from terramoe.moe.routing import RouteInput, Routing
from terramoe.moe.selectors import Pairs


class DroppingSelector(nn.Module):
    """Hides dropped experts from the inner selector, in training only; ``ExpertDropout`` says which.

    A pair whose choice is -inf is removed, so an item may get fewer experts. Combine weights are those of the full
    distribution. Cluster-level dropout: MoEC: Mixture of Expert Clusters, 2022, arXiv 2207.09094. Reconstruction:
    the share is dropped inside each cluster, rounded down, so that no cluster is ever empty.

    Args:
        inner: ``(choice, inp) -> Pairs``; one that chooses by comparing scores, as top-k does.
        num_experts: E.
        clusters: (E,) integer cluster of each expert; None: one cluster.
        rate: share of each cluster's experts to drop, 0 to below 1.
    """

    clusters: Tensor
    dropped: Tensor

    def __init__(
        self,
        inner: Callable[[Tensor, RouteInput], Pairs],
        num_experts: int,
        clusters: Sequence[int] | Tensor | None = None,
        rate: float = 0.5,
    ) -> None:
        super().__init__()
        ids = torch.zeros(num_experts, dtype=torch.int64) if clusters is None else torch.as_tensor(clusters)
        if ids.shape != (num_experts,) or ids.is_floating_point():
            raise RoutingError(
                f"clusters have shape {tuple(ids.shape)} and type {ids.dtype}",
                where="DroppingSelector",
                fix=f"give one integer for each of the {num_experts} experts",
            )
        if not 0 <= rate < 1:
            raise RoutingError(f"rate is {rate}", where="DroppingSelector", fix="choose 0 <= rate < 1")
        self.inner, self.rate = inner, rate
        self.register_buffer("clusters", ids.to(torch.int64).clone())
        self.register_buffer("dropped", torch.zeros(num_experts, dtype=torch.bool))

    @property
    def needs(self) -> str:
        """What the layer hands over as choice."""
        return self.inner.needs

    @property
    def couples_items(self) -> bool:
        """Whether the choice of an item depends on its batch mates in the same call."""
        return self.inner.couples_items

    def forward(self, choice: Tensor, inp: RouteInput) -> Pairs:
        """Scores (T, E) -> pairs with experts that are not dropped; outside training those of the inner selector."""
        if not self.training:
            return self.inner(choice, inp)
        if choice.shape[-1] != self.dropped.shape[0]:
            raise RoutingError(
                f"the selector is for {self.dropped.shape[0]} experts, the choice has {choice.shape[-1]}",
                where="DroppingSelector",
                fix="build the selector with the number of experts of its layer",
            )
        choice = choice.detach().masked_fill(self.dropped, -torch.inf)
        pairs = self.inner(choice, inp)
        keep = pairs.take(choice) > -torch.inf
        if bool(keep.all()):
            return pairs
        return Pairs(pairs.item[keep], pairs.expert[keep], pairs.rank[keep])


class ExpertDropout:
    """Draws the experts to drop anew for every step, from the seed and the number of the step alone.

    Args:
        selector: what hides the experts.
        seed: two runs with the same seed drop the same experts.
    """

    def __init__(self, selector: DroppingSelector, seed: int = 0) -> None:
        self.selector, self.seed = selector, seed
        self._draw(0)

    def after_step(self, step: int, routings: Sequence[Routing]) -> None:
        """Drop other experts in the next step."""
        self._draw(step + 1)

    @torch.no_grad()
    def _draw(self, step: int) -> None:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        clusters = self.selector.clusters.cpu()
        order = torch.randperm(clusters.shape[0], generator=generator)
        dropped = torch.zeros_like(clusters, dtype=torch.bool)
        for cluster in clusters.unique():
            members = order[clusters[order] == cluster]
            dropped[members[: int(self.selector.rate * members.shape[0])]] = True
        self.selector.dropped.copy_(dropped)
