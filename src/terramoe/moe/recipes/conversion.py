"""Dense networks made into experts, and experts made fewer, smaller or whole models.

Each starts from a small random network of its own, so that it can be tried like the others; with a trained one call the
functions of ``terramoe.moe.conversion`` themselves.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from terramoe.moe import conversion, weighing
from terramoe.moe.experts import StackedFFN
from terramoe.moe.layer import MoELayer
from terramoe.moe.recipes.recipe import cycle, recipe, with_keys
from terramoe.moe.routing import RouteInput, Routing
from terramoe.moe.scorers import LinearScorer
from terramoe.moe.selectors import ExpertChoice, Table, TopK


def _dense(dim: int, hidden: int, activation: type[nn.Module] = nn.GELU) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, hidden), activation(), nn.Linear(hidden, dim))


def _probes(dim: int, items: int = 64) -> Tensor:
    """Items to decide by; the same at every call."""
    return torch.randn(items, dim, generator=torch.Generator().manual_seed(0))


@recipe(
    title="Sparse Upcycling: Training Mixture-of-Experts from Dense Checkpoints",
    year=2022,
    source="arXiv 2212.05055",
    equation="every expert starts as the dense FFN; new router of std 0.02; weights sum to 1, so y = FFN(x) at first",
    invariants=("P1", "P2", "P19"),
    oracle="the dense FFN",
)
def upcycled(dim: int, num_experts: int, hidden: int, k: int = 2) -> MoELayer:
    return conversion.upcycle_ffn(_dense(dim, hidden), num_experts, selector=TopK(k))


@recipe(
    title="Sparse Upcycling: Training Mixture-of-Experts from Dense Checkpoints",
    year=2022,
    source="arXiv 2212.05055",
    equation="vision: each expert takes C = 2 T / E items; weights renormalised per item; y = FFN(x) where one took it",
    invariants=("P1", "P4", "P19"),
    oracle="the dense FFN",
)
def upcycled_vision(dim: int, num_experts: int, hidden: int, per_item: float = 2.0) -> MoELayer:
    return conversion.upcycle_ffn(_dense(dim, hidden), num_experts, selector=ExpertChoice(per_item))


class _Residual(nn.Module):
    """x + ffn(x)."""

    def __init__(self, ffn: nn.Module) -> None:
        super().__init__()
        self.ffn = ffn

    def forward(self, x: Tensor) -> Tensor:
        return x + self.ffn(x)


def _collected(module: nn.Module, x: Tensor) -> tuple[Tensor, list[Routing]]:
    """A call for models that do not return their routings."""
    with conversion.routed_ffns(module) as records:
        y = module(x)
    return y, [routing for layer in records.values() for routing in layer]


@recipe(
    title="Training Sparse Mixture Of Experts Text Embedding Models (Nomic Embed v2)",
    year=2025,
    source="arXiv 2502.07972",
    equation="every second FFN: y = b + sum over Top2 of softmax(x W)_i FFN_i(x), 8 copies of it without its offset b",
    objectives={"switch_balance": 1.0},
    invariants=("P1", "P3", "P19"),
    oracle="the dense model",
    call=_collected,
)
def nomic_v2(dim: int, num_experts: int, hidden: int, k: int = 2, blocks: int = 2) -> nn.Module:
    model = nn.Sequential(*(_Residual(_dense(dim, hidden)) for _ in range(blocks)))
    return conversion.upcycle_alternating(model, num_experts, k)


@recipe(
    title="MoEBERT: from BERT to Mixture-of-Experts via Importance-Guided Adaptation",
    year=2022,
    source="arXiv 2204.07675",
    equation="experts share the top neurons by |w . grad w|, the others dealt by rank; expert = table[token], weight 1",
    invariants=("P1", "P19", "P22"),
    oracle="the dense FFN",
    control="distillation from the dense model (conversion.distillation_loss, weight 5)",
    call=with_keys(cycle("token", 32)),
    routed=False,
)
def moebert(dim: int, num_experts: int, hidden: int, shared: float = 2 / 3, num_values: int = 32) -> nn.Module:
    common = int(shared * hidden)
    ffn = _dense(dim, common + num_experts * (hidden - common))
    importance = conversion.neuron_importance({"ffn": ffn}, lambda x: ffn(x).square().mean(), [_probes(dim)])["ffn"]
    table = Table.random("token", num_values, num_experts)
    return conversion.split_by_importance(ffn, importance, num_experts, shared=common, table=table)


@recipe(
    title="Exploiting Activation Sparsity with Dense to Dynamic-k Mixture-of-Experts Conversion",
    year=2023,
    source="arXiv 2310.04361",
    equation="experts are clusters of neurons; y = sum of E_i(x) with n_i >= (1 - tau) max n, n = |MLP(x)| ~ |E_i(x)|",
    invariants=("P1", "P14", "P19"),
    oracle="the dense FFN (tau = 1)",
    control="hoyer_square of the hidden activations first (weight 0.2), then the router alone (conversion.norm_error)",
    routed=False,
)
def d2dmoe(dim: int, num_experts: int, hidden: int, tau: float = 0.5) -> nn.Module:
    return conversion.to_dynamic_k(_dense(dim, num_experts * hidden, nn.ReLU), num_experts, tau)


class _MaskedFFN(nn.Module):
    """One FFN under the masks of its own network."""

    def __init__(self, layer: conversion.MaskedLayer, network: conversion.MaskNetwork) -> None:
        super().__init__()
        self.layer, self.network = layer, network

    def forward(self, x: Tensor) -> tuple[Tensor, Routing]:
        """(T, D) -> (T, D) and the routing."""
        (logits,) = self.network()
        return self.layer(x, conversion.sample_masks(logits, noise=self.training))


@recipe(
    title="ToMoE: Converting Dense Large Language Models to Mixture-of-Experts through Dynamic Structural Pruning",
    year=2025,
    source="arXiv 2501.15316",
    equation="y = FFN(x; neurons of mask m_i), i = argmax(x W + Gumbel), m = [GRU + Gumbel > -3]; FFN frozen",
    objectives={"switch_balance": 1.0},
    invariants=("P1", "P19", "P23"),
    oracle="the dense FFN, slices of it",
    control="conversion.mask_losses: 2 KL + 16 parameter budget + 3 union",
    reconstruction="one draw of the masks per forward; dynamic attention is left out",
)
def tomoe(dim: int, num_experts: int, hidden: int) -> nn.Module:
    layer = conversion.MaskedLayer(_dense(dim, hidden), num_experts)
    return _MaskedFFN(layer, conversion.MaskNetwork([hidden], num_experts))


@recipe(
    title="RingMoE: Mixture-of-Modality-Experts Multi-Modal Foundation Models for Universal Remote Sensing "
    "Image Interpretation",
    year=2025,
    source="arXiv 2504.03166",
    equation="of 2 E experts the E that the data chose most are kept, the router's rows with them",
    invariants=("P1", "P2"),
    oracle="the full layer, on items that lose no expert",
)
def ringmoe_pruned(dim: int, num_experts: int, hidden: int, k: int = 2) -> MoELayer:
    full = MoELayer(
        LinearScorer(dim, 2 * num_experts),
        StackedFFN(2 * num_experts, dim, hidden),
        selector=TopK(k),
        weigh=weighing.renormalised,
    )
    with torch.no_grad():
        use = full.route(RouteInput(_probes(dim)))
    return conversion.prune_experts(full, conversion.most_used([use], num_experts))


@recipe(
    title="RingMoE: Mixture-of-Modality-Experts Multi-Modal Foundation Models for Universal Remote Sensing "
    "Image Interpretation",
    year=2025,
    source="arXiv 2504.03166",
    equation="W_i ~ U_i V_i of half the rank, by singular values",
    invariants=("P1",),
    oracle="closed form (the tail of the singular values)",
)
def ringmoe_condensed(dim: int, num_experts: int, hidden: int, k: int = 2) -> MoELayer:
    bank = conversion.condense_bank(StackedFFN(num_experts, dim, hidden), max(1, min(dim, hidden) // 2))
    return MoELayer(LinearScorer(dim, num_experts), bank, selector=TopK(k))


@recipe(
    title="Scaling Expert Language Models with Unsupervised Domain Discovery",
    year=2023,
    source="arXiv 2303.14177",
    equation="p(y | x) = sum over Topk of p(d | x) p_d(y | x), p(d | x) ~ exp(-|x - m_d|^2 / T); one model per cluster",
    invariants=("P2", "P3"),
    oracle="closed form",
    control="each model is trained alone, on the items of its cluster",
    routed=False,
)
def c_btm(dim: int, num_experts: int, hidden: int, k: int = 2, temperature: float = 0.1) -> nn.Module:
    centres = conversion.balanced_clusters(_probes(dim), num_experts).centres.float()
    models = [_dense(dim, hidden) for _ in range(num_experts)]
    return conversion.MixedModels(models, conversion.ClusterRouter(centres, min(k, num_experts), temperature))


@recipe(
    title="AutoMoE: Heterogeneous Mixture-of-Experts with Adaptive Computation for Efficient Neural Machine "
    "Translation",
    year=2022,
    source="arXiv 2210.07535",
    equation="the layout (experts, width) of a super-layer that keeps most of its output within a budget of parameters",
    objectives={"switch_balance": 0.01},
    invariants=("P1", "P3"),
    oracle="slices of the super-layer",
    reconstruction="layouts are scored by the super-layer's own output, for want of a task",
)
def automoe(dim: int, num_experts: int, hidden: int, share: float = 0.75) -> MoELayer:
    whole = MoELayer(LinearScorer(dim, num_experts), StackedFFN(num_experts, dim, hidden), selector=TopK(1))
    space = conversion.SearchSpace(1, (max(1, hidden // 2), hidden), tuple(range(min(2, num_experts), num_experts + 1)))
    probes = _probes(dim)

    @torch.no_grad()
    def fidelity(layout: tuple[conversion.LayerLayout, ...]) -> float:
        return -float((conversion.elastic_layer(whole, layout[0])(probes)[0] - whole(probes)[0]).square().mean())

    def cost(layout: tuple[conversion.LayerLayout, ...]) -> float:
        return conversion.ffn_parameters(layout, dim)

    budget = share * cost((conversion.LayerLayout(num_experts, hidden),))
    best = conversion.search(space, fidelity, cost, budget, generations=2, population=4)
    return conversion.elastic_layer(whole, best.layout[0])
