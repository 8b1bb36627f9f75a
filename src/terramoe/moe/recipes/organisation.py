"""How experts are shared between tasks, sensors and blocks, and the configurations of well-known models."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from terramoe.moe import links, weighing
from terramoe.moe.capacity import FixedCapacity
from terramoe.moe.controllers import BiasedSelector
from terramoe.moe.experts import AttentionExperts, StackedFFN
from terramoe.moe.layer import MoELayer
from terramoe.moe.organisation import (
    MultiGate,
    ProgressiveExtraction,
    SharedPlusRouted,
    SigmoidGate,
    TaskGates,
    build_extraction,
)
from terramoe.moe.recipes.recipe import cycle, one_sequence, recipe, with_keys
from terramoe.moe.routing import RouteInput, Routing
from terramoe.moe.scorers import AttributeScorer, EmbeddedKeyScorer, LinearScorer, NoisyScorer, PerKeyScorer
from terramoe.moe.selectors import All, GroupLimited, TopK


def _every_task(module: nn.Module, x: Tensor) -> tuple[Tensor, list[Routing]]:
    """Outputs of all tasks side by side, and their routings."""
    outputs = module(x)
    return torch.cat([y for y, _ in outputs.values()], dim=-1), [routing for _, routing in outputs.values()]


@recipe(
    title="Modeling Task Relationships in Multi-task Learning with Multi-gate Mixture-of-Experts",
    year=2018,
    source="DOI 10.1145/3219819.3220007",
    equation="f_k = h_k(sum_i softmax(W_k x)_i E_i(x))",
    invariants=("P1", "P24", "P25"),
    oracle="closed form (einsum)",
    call=_every_task,
)
def mmoe(dim: int, num_experts: int, hidden: int, tasks: int = 2) -> MultiGate:
    gates = TaskGates({f"task{t}": LinearScorer(dim, num_experts) for t in range(tasks)})
    return MultiGate(MoELayer(gates, StackedFFN(num_experts, dim, hidden, activation="relu"), selector=All()))


def _every_level(module: nn.Module, x: Tensor) -> tuple[Tensor, list[Routing]]:
    features, levels = module(x)
    return torch.cat(list(features.values()), dim=-1), [routing for level in levels for routing in level.values()]


@recipe(
    title="Progressive Layered Extraction (PLE): A Novel Multi-Task Learning Model for Personalized Recommendations",
    year=2020,
    source="DOI 10.1145/3383313.3412236",
    equation="task k mixes own and shared experts by softmax(W_k x_k); a shared gate feeds the next level",
    invariants=("P24",),
    oracle="closed form (MMoE without own experts)",
    call=_every_level,
)
def ple(dim: int, num_experts: int, hidden: int, tasks: int = 2, levels: int = 2) -> ProgressiveExtraction:
    own = max(1, num_experts // (tasks + 1))
    names = [f"task{t}" for t in range(tasks)]
    return build_extraction(names, dim, hidden, own, max(1, num_experts - tasks * own), levels)


@recipe(
    title="M3ViT: Mixture-of-Experts Vision Transformer for Efficient Multi-task Learning",
    year=2022,
    source="arXiv 2210.14793",
    equation="y = sum over TopK(softmax(W_task x)) p_i E_i(x), one router per task, no renormalisation",
    objectives={"importance_cv2": 0.01},
    invariants=("P1", "P3"),
    oracle="closed form",
    call=with_keys(cycle("task", 2)),
)
def m3vit(dim: int, num_experts: int, hidden: int, k: int = 4, tasks: int = 2) -> MoELayer:
    scorer = PerKeyScorer("task", [LinearScorer(dim, num_experts) for _ in range(tasks)])
    return MoELayer(scorer, StackedFFN(num_experts, dim, hidden), selector=TopK(min(k, num_experts)))


@recipe(
    title="Mod-Squad: Designing Mixture of Experts As Modular Multi-Task Learners",
    year=2022,
    source="arXiv 2212.08066",
    equation="top-k with noise per task; loss -I(task; expert) over all tasks of a step",
    objectives={"negative_mutual_information": 5e-4},
    invariants=("P1", "P20"),
    oracle="closed form",
    call=with_keys(cycle("task", 2)),
)
def mod_squad(dim: int, num_experts: int, hidden: int, k: int = 2, tasks: int = 2) -> MoELayer:
    gates = [NoisyScorer(LinearScorer(dim, num_experts), dim, num_experts) for _ in range(tasks)]
    return MoELayer(
        PerKeyScorer("task", gates), StackedFFN(num_experts, dim, hidden), selector=TopK(min(k, num_experts))
    )


class _RoutedAttention(nn.Module):
    def __init__(self, scorer: nn.Module, attention: AttentionExperts, k: int) -> None:
        super().__init__()
        self.router = MoELayer(scorer, _NoBank(attention.num_experts), selector=TopK(k))
        self.attention = attention

    def forward(self, x: Tensor) -> tuple[Tensor, Routing]:
        """Sequences (B, S, D) -> (B, S, D) and the routing of their tokens."""
        routing = self.router.route(RouteInput(x.flatten(0, 1)))
        return self.attention(x, routing), routing


class _NoBank(nn.Module):
    """Stands where only the router of a layer is used."""

    def __init__(self, num_experts: int) -> None:
        super().__init__()
        self.num_experts = num_experts


@recipe(
    title="Mixture of Attention Heads: Selecting Attention Heads Per Token",
    year=2022,
    source="arXiv 2210.05144",
    equation="y_t = sum over TopK p_i Attention(x_t Q_i, X K, X V) O_i (the attention experts of Mod-Squad)",
    objectives={"switch_balance": 0.01, "router_z": 0.001},
    invariants=("P10", "P24"),
    oracle="torch scaled_dot_product_attention",
    call=one_sequence,
)
def attention_heads(dim: int, num_experts: int, hidden: int, k: int = 2) -> nn.Module:
    return _RoutedAttention(LinearScorer(dim, num_experts), AttentionExperts(num_experts, dim, hidden), k)


@recipe(
    title="Beyond Distillation: Task-level Mixture-of-Experts for Efficient Inference",
    year=2021,
    source="arXiv 2110.03742",
    equation="p = softmax(W e(task)); all items of a task share their experts",
    objectives={"switch_balance": 0.01},
    invariants=("P1", "P2"),
    oracle="the extracted sub-network",
    call=with_keys(cycle("task", 3)),
)
def task_level(dim: int, num_experts: int, hidden: int, tasks: int = 3) -> MoELayer:
    return MoELayer(
        EmbeddedKeyScorer("task", tasks, num_experts),
        StackedFFN(num_experts, dim, hidden),
        selector=TopK(min(2, num_experts)),
        weigh=weighing.renormalised,
        capacity=FixedCapacity(2.0),
    )


@recipe(
    title="Uni-Perceiver-MoE: Learning Sparse Generalist Models with Conditional MoEs",
    year=2022,
    source="arXiv 2206.04674",
    equation="p = softmax(W LayerNorm(A attributes)), top-2 renormalised; equal attributes allow merging",
    invariants=("P1", "P2", "P19"),
    oracle="the merged layer",
    call=with_keys(lambda items: {"attributes": torch.eye(8)[torch.arange(items) % 8]}),
)
def attribute_routing(dim: int, num_experts: int, hidden: int, attributes: int = 8) -> MoELayer:
    return MoELayer(
        AttributeScorer("attributes", attributes, num_experts),
        StackedFFN(num_experts, dim, hidden),
        selector=TopK(min(2, num_experts)),
        weigh=weighing.renormalised,
    )


@recipe(
    title="DeepSeekMoE: Towards Ultimate Expert Specialization in Mixture-of-Experts Language Models",
    year=2024,
    source="arXiv 2401.06066",
    equation="y = sum of shared FFN(x) + sum over TopK of p_i E_i(x), experts m times finer",
    objectives={"switch_balance": 0.01, "group_balance": 0.05},
    invariants=("P1", "P3", "P25"),
    oracle="closed form",
)
def deepseek_moe(dim: int, num_experts: int, hidden: int, shared: int = 1, k: int = 2) -> SharedPlusRouted:
    body = nn.Sequential(nn.Linear(dim, shared * hidden), nn.SiLU(), nn.Linear(shared * hidden, dim))
    bank = StackedFFN(num_experts, dim, hidden, activation="swiglu", bias=False)
    return SharedPlusRouted(body, MoELayer(LinearScorer(dim, num_experts), bank, selector=TopK(k)))


@recipe(
    title="DeepSeek-V3 Technical Report",
    year=2024,
    source="arXiv 2412.19437",
    equation="choose by sigmoid(z) + b in the best groups; weight 2.5 sigmoid(z) / sum; b moved by load",
    invariants=("P1", "P3", "P13"),
    oracle="transformers DeepseekV3MoE",
    control="LossFreeBias",
)
def deepseek_v3(
    dim: int, num_experts: int, hidden: int, k: int = 2, groups: int = 2, limit: int = 1, scale: float = 2.5
) -> MoELayer:
    return MoELayer(
        LinearScorer(dim, num_experts),
        StackedFFN(num_experts, dim, hidden, activation="swiglu", bias=False),
        selector=BiasedSelector(GroupLimited(k, groups, limit), num_experts),
        link=links.sigmoid,
        weigh=weighing.Scaled(weighing.renormalised, scale),
    )


@recipe(
    title="Mixtral of Experts",
    year=2024,
    source="arXiv 2401.04088",
    equation="y = sum_i softmax(Top2(x W))_i SwiGLU_i(x), 8 experts",
    objectives={"switch_balance": 0.02},
    invariants=("P1", "P2", "P3", "P15"),
    oracle="transformers MixtralSparseMoeBlock",
)
def mixtral(dim: int, num_experts: int, hidden: int, k: int = 2) -> MoELayer:
    return MoELayer(
        LinearScorer(dim, num_experts),
        StackedFFN(num_experts, dim, hidden, activation="swiglu", bias=False),
        selector=TopK(k),
        weigh=weighing.softmax_selected,
    )


@recipe(
    title="OLMoE: Open Mixture-of-Experts Language Models",
    year=2024,
    source="arXiv 2409.02060",
    equation="y = sum over Top8 of 64 of softmax(x W)_i SwiGLU_i(x), no renormalisation, no drop",
    objectives={"switch_balance": 0.01, "router_z": 0.001},
    invariants=("P1", "P3"),
    oracle="transformers OlmoeSparseMoeBlock",
)
def olmoe(dim: int, num_experts: int, hidden: int, k: int = 2) -> MoELayer:
    bank = StackedFFN(num_experts, dim, hidden, activation="swiglu", bias=False)
    return MoELayer(LinearScorer(dim, num_experts), bank, selector=TopK(k))


@recipe(
    title="Time-MoE: Billion-Scale Time Series Foundation Models with Mixture of Experts",
    year=2024,
    source="arXiv 2409.16040",
    equation="y = sigmoid(w x) FFN_shared(x) + sum over Top2 of softmax(x W)_i E_i(x)",
    objectives={"switch_balance": 0.02},
    invariants=("P1", "P3"),
    oracle="transformers Qwen2MoeSparseMoeBlock (the same layout)",
)
def time_moe(dim: int, num_experts: int, hidden: int, k: int = 2) -> SharedPlusRouted:
    shared = GatedFFN(dim, hidden)
    bank = StackedFFN(num_experts, dim, hidden, activation="swiglu", bias=False)
    layer = MoELayer(LinearScorer(dim, num_experts), bank, selector=TopK(k))
    return SharedPlusRouted(shared, layer, SigmoidGate(dim))


class GatedFFN(nn.Module):
    """A dense gated block, ``(silu(x W_gate) * x W_up) W_down``: a bank of one expert."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.bank = StackedFFN(1, dim, hidden, activation="swiglu", bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return self.bank.run(0, x)
