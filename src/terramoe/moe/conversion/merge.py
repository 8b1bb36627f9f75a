"""Merging for good: several experts become one, or a few groups of like experts become one each.

``terramoe.moe.merging`` merges anew at each call; here the merged parameters replace the experts. The given modules
are left as they are. Shapes: E experts, G groups.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from terramoe.errors import RoutingError
from terramoe.moe.conversion.prune import prune_bank
from terramoe.moe.experts import Bank, ModuleBank, StackedFFN
from terramoe.moe.layer import MoELayer
from terramoe.moe.merging import merge_experts
from terramoe.moe.routing import RouteInput
from terramoe.moe.scorers import Scores, ZeroScorer
from terramoe.moe.selectors import TopK


class GroupScorer(nn.Module):
    """The logit of a group is the logsumexp of its experts': a softmax link gives the sum of their probabilities.

    Args:
        scorer: gives logits (T, E).
        groups: (E,) group ids 0..G-1, none empty.
    """

    def __init__(self, scorer: nn.Module, groups: Tensor | Sequence[int]) -> None:
        super().__init__()
        self.scorer = scorer
        self.register_buffer("groups", _checked_groups(groups))
        self.num_experts = int(self.groups.max()) + 1

    def forward(self, inp: RouteInput) -> Scores:
        """RouteInput -> logits (T, G). Noise of the experts' logits is inside them and not reported."""
        logits = self.scorer(inp).logits
        if logits.shape[-1] != self.groups.numel():
            raise RoutingError(
                f"the scorer gives {logits.shape[-1]} logits, {self.groups.numel()} experts have a group",
                where="GroupScorer",
                fix="give one group id per expert",
            )
        columns = [logits[:, self.groups == g].logsumexp(-1) for g in range(self.num_experts)]
        return Scores(torch.stack(columns, dim=-1))


@torch.no_grad()
def merge_groups(bank: StackedFFN, groups: Tensor | Sequence[int], usage: Tensor | None = None) -> StackedFFN:
    """A bank of G experts, each the mean of its group's parameters.

    Args:
        bank: E experts.
        groups: (E,) group ids 0..G-1, none empty; all 0 merges everything into one expert.
        usage: (E,) weights of at least 0 for the means, for example ``Routing.demand``; None or a group without any
            use: plain means.

    Raises:
        RoutingError: groups or usage that do not fit, or a bank whose parameters are not stacked.

    Source: Merge, Then Compress: Demystify Efficient SMoE with Hints from Its Routing Policy, 2023, arXiv 2310.01334.
    Reconstruction: without its alignment of hidden units, which matters where experts were not made from one network.
    """
    ids = _checked_groups(groups)
    use = torch.ones(ids.numel(), dtype=torch.float64) if usage is None else usage.detach().double().cpu()
    if use.shape != ids.shape or not bool((use.isfinite() & (use >= 0)).all()):
        raise RoutingError(
            f"usage of shape {tuple(use.shape)} for {ids.numel()} experts",
            where="merge_groups",
            fix="give one finite number of at least 0 per expert",
        )
    members = F.one_hot(ids).T.double()  # (G, E)
    shares = members * use
    shares = torch.where(shares.sum(-1, keepdim=True) > 0, shares, members)
    means = merge_experts(bank, (shares / shares.sum(-1, keepdim=True)).to(next(bank.parameters()).device))
    merged = prune_bank(bank, range(means.w_in.shape[0]))
    for parameter, mean in zip(merged.weights(), means, strict=True):
        if parameter is not None:
            parameter.copy_(mean)
    return merged


def merge_layer(layer: MoELayer, groups: Tensor | Sequence[int], usage: Tensor | None = None) -> MoELayer:
    """A layer of G merged experts whose groups are routed to with the experts' joint probability (``GroupScorer``).

    Where the experts of a group are alike, all are chosen and weights are raw softmax probabilities, it equals the
    given layer. Its selector must not hold state for E experts.

    Raises:
        RoutingError: as ``merge_groups``; fewer groups than an item chooses; a selector with state.
    """
    bank = merge_groups(layer.bank, groups, usage)
    wanted = max(getattr(layer.selector, "k", 1), getattr(layer.selector, "pool", 1))
    if wanted > bank.num_experts or isinstance(layer.selector, nn.Module):
        raise RoutingError(
            f"{type(layer.selector).__name__} for {wanted} experts cannot choose from {bank.num_experts} groups",
            where="merge_layer",
            fix="make as many groups as an item chooses experts, with a selector such as TopK",
        )
    merged = MoELayer(
        GroupScorer(copy.deepcopy(layer.scorer), groups).to(bank.w_in_EDH.device),
        bank,
        selector=layer.selector,
        link=copy.deepcopy(layer.link),
        weigh=copy.deepcopy(layer.weigh),
        capacity=copy.deepcopy(layer.capacity),
        executor=layer.executor,
    )
    merged.training = layer.training
    return merged


def merge_back(layer: MoELayer, keys: Mapping[str, Tensor] | None = None) -> MoELayer:
    """A layer of one expert in place of E whose weights g do not depend on the item: Σ g_e W_e.

    Exact for linear experts (a ``ModuleBank`` of ``nn.Linear``) and where one expert is chosen. Of feed-forward
    experts the first matrices are averaged with g / Σ g and the second summed with g, which is also exact where the
    chosen experts share their first matrix, else an approximation. Source: Uni-Perceiver-MoE, 2022, arXiv 2206.04674.

    Args:
        layer: its router reads keys only (a sensor, a task, an attribute vector) and drops nothing.
        keys: the keys to merge for, one row each.

    Raises:
        RoutingError: items change the weights (tried on 16 unlike items), a capacity, nothing chosen, another bank.
    """
    weights = _item_independent(layer, keys or {})
    if isinstance(layer.bank, ModuleBank):
        bank: Bank = ModuleBank([_merge_linear(layer.bank, weights)])
    else:
        total = weights.sum()
        bank = merge_groups(layer.bank, [0] * layer.num_experts, weights)
        with torch.no_grad():
            for parameter in bank.weights()[2:]:
                if parameter is not None:
                    parameter.mul_(total)
    merged = MoELayer(ZeroScorer(1), bank, selector=TopK(1))
    merged.training = layer.training
    return merged


@torch.no_grad()
def similarity(bank: StackedFFN) -> Tensor:
    """(E, E) cosine of the experts' flattened parameters, float64, on the CPU; an expert of zeros is unlike all."""
    flat = [p.detach().double().cpu().flatten(1) for p in bank.weights() if p is not None]
    rows = F.normalize(torch.cat(flat, dim=1), dim=1)
    return rows @ rows.T


def similar_groups(similarity: Tensor, count: int) -> Tensor:
    """(E,) group ids 0..count-1 by joining, again and again, the two groups of the greatest mean similarity.

    Ties go to the lower index; groups are numbered by their first expert.

    Args:
        similarity: (E, E) finite and symmetric, greater for more alike experts; the diagonal is not read.
        count: groups wanted, 1..E.

    Raises:
        RoutingError: another shape, or no such count.
    """
    value = similarity.detach().double().cpu().clone()
    experts = value.shape[0]
    if value.shape != (experts, experts) or not bool(value.isfinite().all()) or not torch.allclose(value, value.T):
        raise RoutingError(
            f"similarities {tuple(value.shape)}", where="similar_groups", fix="give a finite symmetric (E, E) matrix"
        )
    if not 1 <= count <= experts:
        raise RoutingError(f"{count} groups of {experts} experts", where="similar_groups", fix="choose 1 to E groups")
    groups, size = torch.arange(experts), torch.ones(experts, dtype=torch.float64)
    for _ in range(experts - count):
        first = groups == torch.arange(experts)  # a group stands at the place of its first expert
        pairs = (first[:, None] & first).triu(1)
        low, high = divmod(int(torch.where(pairs, value, -torch.inf).argmax()), experts)
        mean = (size[low] * value[low] + size[high] * value[high]) / (size[low] + size[high])
        value[low], value[:, low] = mean, mean
        size[low] += size[high]
        groups[groups == high] = low
    return torch.unique(groups, return_inverse=True)[1]


def _checked_groups(groups: Tensor | Sequence[int]) -> Tensor:
    ids = torch.as_tensor(groups).detach().cpu()
    whole = ids.ndim == 1 and ids.numel() > 0 and not ids.is_floating_point() and ids.dtype != torch.bool
    if not whole or sorted(set(ids.tolist())) != list(range(len(set(ids.tolist())))):
        raise RoutingError(
            f"groups {ids.tolist()}", where="groups", fix="give one id per expert, 0 to G-1, with no empty group"
        )
    return ids.long()


@torch.no_grad()
def _item_independent(layer: MoELayer, keys: Mapping[str, Tensor]) -> Tensor:
    """(E,) weights that every item gets under these keys, in evaluation mode."""
    width = layer.bank.experts[0].in_features if _linear_bank(layer.bank) else getattr(layer.bank, "dim", None)
    if width is None or layer.capacity is not None or layer.selector.couples_items:
        raise RoutingError(
            f"cannot merge a {type(layer.bank).__name__} behind this router",
            where="merge_back",
            fix="use linear or stacked feed-forward experts, no capacity, a selector that sees one item at a time",
        )
    reference = next(layer.bank.parameters())
    noise = torch.randn(15, width, generator=torch.Generator().manual_seed(0))
    probes = torch.cat([torch.zeros(1, width), 10 * noise]).to(reference)
    quiet = copy.deepcopy(layer, {id(layer.bank): layer.bank})  # the experts are not run
    quiet.scorer.eval()
    shared = {name: key.expand(16, *key.shape[1:]) for name, key in keys.items()}
    dense = quiet.route(RouteInput(probes, keys=shared)).dense()
    if (dense - dense[0]).abs().max() > 1e-6 or not dense[0].any():
        raise RoutingError(
            "the weights of the experts depend on the item, or are 0",
            where="merge_back",
            fix="merge only where the router reads keys alone",
        )
    return dense[0]


def _linear_bank(bank: Bank) -> bool:
    """Whether the experts are linear layers of one shape."""
    linear = isinstance(bank, ModuleBank) and all(type(expert) is nn.Linear for expert in bank.experts)
    return linear and len({expert.weight.shape for expert in bank.experts}) == 1


@torch.no_grad()
def _merge_linear(bank: ModuleBank, weights: Tensor) -> nn.Linear:
    merged = copy.deepcopy(bank.experts[0])
    terms = [(w.to(e.weight.dtype), e) for w, e in zip(weights, bank.experts, strict=True)]
    merged.weight.copy_(sum(w * e.weight for w, e in terms))
    offsets = [w * e.bias for w, e in terms if e.bias is not None]
    merged.bias = nn.Parameter(sum(offsets).clone()) if offsets else None
    return merged
