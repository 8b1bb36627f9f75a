"""Pruning: a layer with some of its experts, the router's rows taken along.

The given layer is left as it is. Source: RingMoE, 2025, arXiv 2504.03166, which keeps the most activated experts.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from terramoe.errors import RoutingError
from terramoe.moe import scorers, selectors
from terramoe.moe.controllers.biased import BiasedSelector
from terramoe.moe.experts import Bank, ConvBank, LoRABank, ModuleBank, StackedFFN, TTLoRABank
from terramoe.moe.layer import MoELayer, Selector
from terramoe.moe.routing import Routing

Use = Literal["demand", "load", "importance"]

# Which parameters of a scorer have one row per expert, and which scorers only wrap another.
_ROWS: dict[type[nn.Module], tuple[str, ...]] = {
    scorers.AttributeScorer: ("encode.2.weight", "encode.2.bias"),
    scorers.CosineScorer: ("experts",),
    scorers.EmbeddedKeyScorer: ("linear.weight", "linear.bias"),
    scorers.GaussianScorer: ("mean", "log_std", "log_prior"),
    scorers.LinearScorer: ("linear.weight", "linear.bias"),
    scorers.MLPScorer: ("second.weight", "second.bias"),
    scorers.NoisyScorer: ("noise.weight",),
    scorers.PrototypeScorer: ("prototypes",),
    scorers.ZeroScorer: (),
}
_WRAPPERS = (
    scorers.FixedNoiseScorer,
    scorers.FrozenScorer,
    scorers.GumbelScorer,
    scorers.JitterScorer,
    scorers.NoisyScorer,
)
_NOT_BY_SCORE = (selectors.GroupLimited, selectors.HashedItem, selectors.RandomK, selectors.TopOfEachGroup)


def prune_experts(layer: MoELayer, keep: Collection[int] | Tensor) -> MoELayer:
    """A new layer with copies of the experts ``keep``, in their old order.

    An item all of whose chosen experts stay chooses the same ones. Its output is then the same too where the weights
    depend on the chosen logits only: ``renormalised``, ``softmax_selected`` and ``ones``, and any weighing behind a
    sigmoid link. Raw softmax weights grow by 1 / (1 - what the removed experts had), for one expert per item a plain
    factor. A capacity counts with the new number of experts.

    Args:
        layer: its bank, scorer and selector must keep their experts apart (``RoutingError`` names what does not).
        keep: ids of the experts that stay; their order does not count.

    Raises:
        RoutingError: an id twice or out of range, none left, fewer left than an item chooses, or a part that cannot be
            pruned: groups of experts, codes, hashes, experts spread over processes.
    """
    kept = _checked(keep, layer.num_experts)
    if getattr(layer.executor, "collective", False):
        raise RoutingError(
            "the experts are spread over several processes",
            where="prune_experts",
            fix="prune before the experts are spread",
        )
    if isinstance(layer.link, selectors.GroupedSoftmax):
        raise RoutingError("the link has groups of experts", where="prune_experts", fix="use a link without groups")
    pruned = MoELayer(
        prune_scorer(layer.scorer, kept),
        prune_bank(layer.bank, kept),
        selector=_prune_selector(layer.selector, kept, layer.num_experts),
        link=copy.deepcopy(layer.link),
        weigh=copy.deepcopy(layer.weigh),
        capacity=copy.deepcopy(layer.capacity),
        executor=layer.executor,
    )
    pruned.training = layer.training
    return pruned


def prune_bank(bank: Bank, keep: Collection[int] | Tensor) -> Bank:
    """A new bank with copies of the experts ``keep``; what all experts share (LoRA's matrix A) is copied whole."""
    if not isinstance(bank, (StackedFFN, LoRABank, TTLoRABank, ConvBank, ModuleBank)):
        raise RoutingError(
            f"cannot prune a {type(bank).__name__}",
            where="prune_bank",
            fix="use a bank with stacked weights or a ModuleBank",
        )
    kept = _checked(keep, bank.num_experts)
    if isinstance(bank, ModuleBank):
        return ModuleBank(copy.deepcopy(bank.experts[e]) for e in kept.tolist()).train(bank.training)
    stacked = [p for p in bank.parameters() if p.shape[0] == bank.num_experts]
    return _copy_with_rows(bank, stacked, kept, bank.num_experts)


def prune_scorer(scorer: nn.Module, keep: Collection[int] | Tensor) -> nn.Module:
    """A new scorer whose logits are the columns ``keep`` of the given one's."""
    every = _expert_parameters(scorer)
    experts = next((part.num_experts for part in scorer.modules() if hasattr(part, "num_experts")), 0)
    return _copy_with_rows(scorer, every, _checked(keep, experts), experts)


def least_used(routings: Sequence[Routing], count: int, by: Use = "demand") -> Tensor:
    """(count,) ids of the experts that these routings used least, ascending; ties go to the lower index.

    Args:
        routings: of one layer, over as many batches as wanted.
        count: how many.
        by: "demand" counts choices, "load" choices after capacity, "importance" sums weights.
    """
    return _by_use(routings, count, by)[:count].sort().values


def most_used(routings: Sequence[Routing], count: int, by: Use = "demand") -> Tensor:
    """(count,) ids of the experts that ``least_used(routings, E - count)`` leaves: what ``prune_experts`` keeps."""
    order = _by_use(routings, count, by)
    return order[order.numel() - count :].sort().values


def _by_use(routings: Sequence[Routing], count: int, by: Use) -> Tensor:
    """(E,) ids from the least to the most used."""
    experts = {routing.num_experts for routing in routings}
    if len(experts) != 1 or by not in ("demand", "load", "importance"):
        raise RoutingError(
            f"routings over {sorted(experts) or 'no'} experts, by '{by}'",
            where="least_used",
            fix="give at least one routing, all of one layer, and 'demand', 'load' or 'importance'",
        )
    if not 0 <= count <= max(experts):
        raise RoutingError(f"{count} of {max(experts)} experts", where="least_used", fix="choose 0 to E")
    use = sum(getattr(routing, by)().detach().double().cpu() for routing in routings)
    return torch.argsort(use, stable=True)


def _checked(keep: Collection[int] | Tensor, experts: int) -> Tensor:
    """Sorted ids (n,) int64, at least one, each once and in 0..E-1."""
    ids = keep.tolist() if isinstance(keep, Tensor) and keep.ndim == 1 else list(keep)
    if not ids or any(isinstance(e, bool) or not hasattr(e, "__index__") for e in ids) or len(set(ids)) < len(ids):
        raise RoutingError(f"keep = {ids}", where="prune_experts", fix="give at least one expert id, each once")
    ids = sorted(int(e) for e in ids)
    if not 0 <= ids[0] <= ids[-1] < experts:
        raise RoutingError(f"keep = {ids} of {experts} experts", where="prune_experts", fix=f"use 0 to {experts - 1}")
    return torch.tensor(ids, dtype=torch.int64)


def _expert_parameters(scorer: nn.Module) -> list[nn.Parameter]:
    """The scorer's parameters with one row per expert."""
    if type(scorer) is scorers.PerKeyScorer:
        return [p for part in scorer.scorers for p in _expert_parameters(part)]
    wrapped = _expert_parameters(scorer.scorer) if type(scorer) in _WRAPPERS else []
    if type(scorer) not in _ROWS and type(scorer) not in _WRAPPERS:
        raise RoutingError(
            f"cannot take experts out of a {type(scorer).__name__}",
            where="prune_scorer",
            fix=f"use one of {', '.join(sorted(kind.__name__ for kind in (*_ROWS, *_WRAPPERS)))}",
        )
    named = dict(scorer.named_parameters())
    return wrapped + [named[name] for name in _ROWS.get(type(scorer), ()) if name in named]


def _copy_with_rows(module: nn.Module, parameters: list[nn.Parameter], kept: Tensor, experts: int) -> nn.Module:
    """A copy of the module in which these parameters have the rows ``kept`` only; the others are never copied whole."""
    rows = {id(p): nn.Parameter(p.detach()[kept.to(p.device)], p.requires_grad) for p in parameters}
    copied = copy.deepcopy(module, rows)
    for part in copied.modules():
        if getattr(part, "num_experts", None) == experts:
            part.num_experts = kept.numel()
        if isinstance(part, nn.Linear):
            part.out_features = part.weight.shape[0]
    return copied


def _prune_selector(selector: Selector, kept: Tensor, experts: int) -> Selector:
    left = kept.numel()
    unknown_state = isinstance(selector, nn.Module) and not isinstance(selector, (BiasedSelector, selectors.Table))
    if isinstance(selector, _NOT_BY_SCORE) or unknown_state:
        raise RoutingError(
            f"{type(selector).__name__} chooses by more than the scores of single experts",
            where="prune_experts",
            fix="use a selector such as TopK",
        )
    for name in ("k", "pool"):
        if getattr(selector, name, 0) > left:
            raise RoutingError(
                f"{left} experts are left, but {name} = {getattr(selector, name)}",
                where="prune_experts",
                fix=f"keep at least {getattr(selector, name)} experts",
            )
    if isinstance(selector, selectors.Table):
        return _prune_table(selector, kept, experts)
    if not isinstance(selector, (BiasedSelector, selectors.Available)):
        return selector
    inner = _prune_selector(selector.inner, kept, experts)
    if isinstance(selector, selectors.Available):
        return replace(selector, inner=inner)
    copied = copy.deepcopy(selector)
    copied.inner, copied.bias = inner, selector.bias.detach()[kept.to(selector.bias.device)]
    return copied


def _prune_table(table: selectors.Table, kept: Tensor, experts: int) -> selectors.Table:
    new_id = torch.full((experts,), -1)
    new_id[kept] = torch.arange(kept.numel())
    entries = new_id[table.table.cpu()]
    if (entries < 0).any():
        gone = sorted(set(table.table.flatten().tolist()) - set(kept.tolist()))
        raise RoutingError(
            f"the table names the experts {gone}, which would go",
            where="prune_experts",
            fix="keep what the table names",
        )
    return selectors.Table(table.key, entries).to(table.table.device)
