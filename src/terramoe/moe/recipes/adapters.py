"""Small experts beside a frozen linear map (``hidden`` is the rank); ``add_lora_experts`` puts them into a model."""

from __future__ import annotations

import math

from torch import Tensor, nn

from terramoe.moe.adapters import BlendScorer
from terramoe.moe.experts import LoRABank, TTLoRABank
from terramoe.moe.layer import MoELayer
from terramoe.moe.output_gate import OutputGate, OutputGatedLayer
from terramoe.moe.recipes.recipe import cycle, recipe, with_keys
from terramoe.moe.routing import Routing
from terramoe.moe.scorers import EmbeddedKeyScorer, LinearScorer, MLPScorer, NoisyScorer
from terramoe.moe.selectors import All, TopK


class BesideLinear(nn.Module):
    """A frozen linear map plus routed experts, ``y = W x + experts(x)``, returning the routing too."""

    def __init__(self, base: nn.Linear, experts: nn.Module) -> None:
        super().__init__()
        self.base, self.experts = base.requires_grad_(False), experts

    def forward(self, x: Tensor, **keys: object) -> tuple[Tensor, Routing]:
        """(T, D) -> (T, D_out) and the experts' routing."""
        y, routing = self.experts(x, **keys)
        return self.base(x) + y, routing


def _split(n: int) -> tuple[int, int]:
    """Two factors of n, as equal as possible."""
    first = next(f for f in range(math.isqrt(n), 0, -1) if n % f == 0)
    return first, n // first


@recipe(
    title="LoRA: Low-Rank Adaptation of Large Language Models, as routed experts",
    year=2021,
    source="arXiv 2106.09685",
    equation="y = W x + sum over TopK p_i s B_i A_i x, B = 0 at the start",
    objectives={"switch_balance": 0.01},
    invariants=("P1", "P19", "P24"),
    oracle="explicit delta W",
)
def lora_experts(dim: int, num_experts: int, hidden: int = 4, k: int = 2) -> nn.Module:
    bank = LoRABank(num_experts, dim, dim, hidden)
    layer = MoELayer(LinearScorer(dim, num_experts), bank, selector=TopK(min(k, num_experts)))
    return BesideLinear(nn.Linear(dim, dim), layer)


@recipe(
    title="TT-LoRA MoE: Unifying Parameter-Efficient Fine-Tuning and Sparse Mixture-of-Experts",
    year=2025,
    source="arXiv 2504.21190",
    equation="y = W x + TT_i x, i = argmax of a noisy router; experts frozen after their own task",
    objectives={"router_cross_entropy": 1.0},
    invariants=("P1", "P19"),
    oracle="explicit delta W, TT-SVD",
    reconstruction="the router's loss, and how cores start",
)
def tt_lora(dim: int, num_experts: int, hidden: int = 4) -> nn.Module:
    scorer = NoisyScorer(LinearScorer(dim, num_experts), dim, num_experts)
    bank = TTLoRABank(num_experts, _split(dim), _split(dim), hidden)
    return BesideLinear(nn.Linear(dim, dim), MoELayer(scorer, bank, selector=TopK(1)))


@recipe(
    title="Mixture of LoRA Experts",
    year=2024,
    source="arXiv 2404.13628",
    equation="y = W x + sum_i softmax(LayerNorm(concat_j E_j(x)) e / tau)_i E_i(x), LoRAs frozen",
    objectives={"gating_balance": 1.0},
    invariants=("P2", "P24"),
    oracle="closed form",
    reconstruction="the norm, and averaging where the paper flattens",
)
def mole(dim: int, num_experts: int, hidden: int = 4) -> nn.Module:
    bank = LoRABank(num_experts, dim, dim, hidden)
    return BesideLinear(nn.Linear(dim, dim), OutputGatedLayer(bank, OutputGate(num_experts, dim)))


@recipe(
    title="HMoRA: Making LLMs More Effective with Hierarchical Mixture of LoRA Experts",
    year=2025,
    source="ICLR 2025, OpenReview lTkHiXeuDl",
    equation="p = (1 - s_l) softmax(MLP(x)) + s_l softmax(W task), s_l rising with depth",
    objectives={"gjs_divergence": 0.01},
    invariants=("P1", "P19", "P20"),
    oracle="explicit delta W",
    call=with_keys(cycle("task", 3)),
)
def hmora(dim: int, num_experts: int, hidden: int = 4, tasks: int = 3, layer: int = 1, layers: int = 2) -> nn.Module:
    token, task = MLPScorer(dim, num_experts), EmbeddedKeyScorer("task", tasks, num_experts)
    bank = LoRABank(num_experts, dim, dim, hidden, shared_a=True)
    return BesideLinear(nn.Linear(dim, dim), MoELayer(BlendScorer(token, task, layer, layers), bank, selector=All()))
