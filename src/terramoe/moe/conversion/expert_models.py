"""Whole models as experts: data are clustered, one model is trained per cluster, and their probabilities are mixed.

Training is left to the caller: fit one model on ``features[clusters.label == d]`` for each cluster d. Source: Scaling
Expert Language Models with Unsupervised Domain Discovery (c-BTM), 2023, arXiv 2303.14177.

Shapes: T items, F features, E clusters and models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from terramoe.errors import RoutingError
from terramoe.moe import links, weighing
from terramoe.moe.routing import RouteInput, Routing
from terramoe.moe.selectors import TopK


class Clusters(NamedTuple):
    """Balanced clusters: centres (E, F) float64 and the label (T,) int64 of each item."""

    centres: Tensor
    label: Tensor


@torch.no_grad()
def balanced_clusters(features: Tensor, count: int, *, iterations: int = 50, seed: int = 0) -> Clusters:
    """k-means under equal sizes: cluster sizes differ by at most 1.

    Each step assigns the items at the least total squared distance under the sizes, exactly (scipy's linear
    assignment), and moves each centre to its items' mean, until the labels stay. The cost of a step grows with the cube
    of T: cluster some thousand items and label the rest by ``ClusterRouter``. The same seed gives the same clusters.

    Args:
        features: (T, F) finite; the source takes tf-idf, reduced to 100 dimensions and normalised.
        count: E, 1..T.
        iterations: most steps.
        seed: of the starting centres (k-means++: far items are likelier).

    Raises:
        RoutingError: features that are no finite matrix, a count outside 1..T, no iterations.
    """
    if features.ndim != 2 or 0 in features.shape or not bool(features.isfinite().all()):
        raise RoutingError(
            f"features of shape {tuple(features.shape)}",
            where="balanced_clusters",
            fix="give finite features (items, channels); leave out nodata",
        )
    if not 1 <= count <= features.shape[0] or iterations < 1:
        raise RoutingError(
            f"{count} clusters of {features.shape[0]} items in {iterations} iterations",
            where="balanced_clusters",
            fix="use 1 to T clusters and at least 1 iteration",
        )
    x = features.detach().double().cpu()
    x = x - x.mean(0)  # squared distances of raw radiances would else lose their digits
    centres, label = _spread_start(x, count, seed), torch.full((x.shape[0],), -1)
    for _ in range(iterations):
        new = _balanced_labels(torch.cdist(x, centres).square())
        if torch.equal(new, label):
            break
        label = new
        sizes = torch.bincount(label, minlength=count)[:, None]
        centres = torch.zeros_like(centres).index_add(0, label, x) / sizes
    return Clusters(centres + features.detach().double().cpu().mean(0), label.to(features.device))


class ClusterRouter(nn.Module):
    """p(d | x) ∝ exp(-|x - m_d|² / temperature), the k nearest clusters kept and renormalised.

    Args:
        centres: (E, F).
        k: models used per item.
        temperature: 0.1 in the source, for normalised features; the greater, the more even.

    Raises:
        RoutingError: centres that are no finite matrix, k outside 1..E, a temperature that is not above 0.
    """

    def __init__(self, centres: Tensor, k: int = 2, temperature: float = 0.1) -> None:
        super().__init__()
        if centres.ndim != 2 or 0 in centres.shape or not bool(centres.isfinite().all()):
            raise RoutingError(
                f"centres of shape {tuple(centres.shape)}", where="ClusterRouter", fix="give finite centres (E, F)"
            )
        if not 0 < temperature < float("inf"):
            raise RoutingError(f"temperature {temperature}", where="ClusterRouter", fix="use a finite value above 0")
        self.register_buffer("centres", centres.detach().clone())
        self.selector, self.temperature = TopK(k), temperature
        self.selector.checked_k(self.num_experts)

    @property
    def num_experts(self) -> int:
        """E."""
        return self.centres.shape[0]

    def forward(self, features: Tensor, mask: Tensor | None = None) -> Routing:
        """(T, F) -> routing over E clusters whose weights sum to 1 per item; masked items get no cluster.

        Raises:
            RoutingError: features of another width; not finite in an item that is not masked.
        """
        inp = RouteInput(features, mask)
        if features.ndim != 2 or features.shape[1] != self.centres.shape[1]:
            raise RoutingError(
                f"features have shape {tuple(features.shape)}, expected (items, {self.centres.shape[1]})",
                where="ClusterRouter",
                fix="give the features that the clusters were made of",
            )
        x = features if mask is None else torch.where(mask[:, None], features, 0)
        if not bool(x.isfinite().all()):
            raise RoutingError(
                f"{int((~x.isfinite()).any(-1).sum())} of {x.shape[0]} items have features that are not finite",
                where="ClusterRouter",
                fix="pass mask= with False for nodata items",
            )
        with torch.autocast(x.device.type, enabled=False):
            dtype = torch.promote_types(torch.promote_types(x.dtype, self.centres.dtype), torch.float32)
            # Differences, not the expanded square: near centres far from the origin stay apart.
            distance = (x.to(dtype)[:, None] - self.centres.to(dtype)).square().sum(-1)
            # Softmax ignores the shift, and without it float32 loses what tells two far centres apart.
            logits = -(distance - distance.amin(-1, keepdim=True)) / self.temperature
            pairs, probs = self.selector(logits, inp), links.softmax(logits)
            weight = weighing.softmax_selected(probs, logits, pairs)
        kept = torch.ones_like(pairs.item, dtype=torch.bool)
        return Routing(
            logits, probs, pairs.item, pairs.expert, pairs.rank, weight, kept, mask=mask, fixed_k=pairs.fixed_k
        )


class MixedModels(nn.Module):
    """p(y | x) = Σ_d p(d | x) p_d(y | x): the models' probabilities are mixed, not their logits.

    With k = 1 this is the nearest cluster's model. A model runs on its own items only.

    Args:
        models: each maps its items' inputs (n, ...) to logits (n, C, ...), classes in dimension 1.
        router: ``ClusterRouter``, or any module ``(features, mask) -> Routing`` whose weights sum to 1.

    Raises:
        RoutingError: no models, or not as many as clusters.
    """

    def __init__(self, models: Sequence[nn.Module], router: ClusterRouter) -> None:
        super().__init__()
        if len(models) == 0 or len(models) != router.num_experts:
            raise RoutingError(
                f"{len(models)} models for {router.num_experts} clusters",
                where="MixedModels",
                fix="give one model per cluster",
            )
        self.models, self.router = nn.ModuleList(models), router

    def forward(self, x: Tensor, features: Tensor | None = None, mask: Tensor | None = None) -> tuple[Tensor, Routing]:
        """Inputs (T, ...), features (T, F) -> probabilities (T, C, ...), and the routing that mixed them.

        Args:
            x: what the models take.
            features: what the router looks at; x itself unless given.
            mask: (T,) bool; False items run through no model and get probabilities of 0.

        Raises:
            RoutingError: no items to run, unequal numbers of items, models that disagree in the shape of their outputs.
        """
        features = x if features is None else features
        if x.shape[:1] != features.shape[:1]:
            raise RoutingError(
                f"{x.shape[0]} inputs with {features.shape[0]} rows of features",
                where="MixedModels",
                fix="give one row of features per input",
            )
        routing = self.router(features, mask)
        y = None
        for expert in routing.demand().nonzero().flatten().tolist():
            rows = ((routing.expert == expert) & routing.kept).nonzero().squeeze(1)
            logits = self.models[expert](x[routing.item[rows]])
            if logits.ndim < 2 or (y is not None and logits.shape[1:] != y.shape[1:]):
                raise RoutingError(
                    f"model {expert} gives logits {tuple(logits.shape)}",
                    where="MixedModels",
                    fix="let all models map to (items, classes, ...) with the same classes and size",
                )
            probs = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(1)
            part = probs * routing.weight[rows].to(probs.dtype).view(-1, *[1] * (probs.ndim - 1))
            y = part.new_zeros(x.shape[0], *part.shape[1:]) if y is None else y
            y = y.index_add(0, routing.item[rows], part.to(y.dtype))
        if y is None:
            raise RoutingError(
                "there is no item to run, so that the number of classes is unknown",
                where="MixedModels",
                fix="skip batches that are empty or masked throughout",
            )
        return y, routing


def _spread_start(x: Tensor, count: int, seed: int) -> Tensor:
    """(E, F): k-means++, the first item at random and each further one in proportion to its squared distance."""
    generator = torch.Generator().manual_seed(seed)
    chosen = [int(torch.randint(x.shape[0], (1,), generator=generator))]
    nearest = (x - x[chosen[0]]).square().sum(-1)
    while len(chosen) < count:
        weights = nearest if bool((nearest > 0).any()) else torch.ones_like(nearest)  # all left are doubles
        chosen.append(int(torch.multinomial(weights, 1, generator=generator)))
        nearest = torch.minimum(nearest, (x - x[chosen[-1]]).square().sum(-1))
    return x[chosen]


def _balanced_labels(cost: Tensor) -> Tensor:
    """(T,) labels of least total cost (T, E) where every cluster has floor(T / E) or one more."""
    items, count = cost.shape
    low, high = items // count, -(-items // count)
    # Every cluster stands ceil(T / E) times; the copy beyond the floor costs so much that all get the floor first.
    extra = torch.zeros(high, dtype=cost.dtype)
    extra[low:] = (cost.amax() - cost.amin()) * items + 1
    columns = (cost[:, :, None] + extra).flatten(1)
    _, column = linear_sum_assignment(columns.numpy())
    return torch.from_numpy(column) // high
