"""Sparse layers: how items find their experts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from terramoe.moe import links, weighing
from terramoe.moe.capacity import AdaptiveCapacity, FixedCapacity, RandomSecond
from terramoe.moe.experts import ChannelBank, StackedFFN
from terramoe.moe.layer import MoELayer
from terramoe.moe.merging import SegmentMergedFFN
from terramoe.moe.organisation import PreGatedStack
from terramoe.moe.recipes.recipe import cycle, one_sequence, recipe, with_keys
from terramoe.moe.routing import Routing
from terramoe.moe.scorers import (
    BinaryCodeScorer,
    CosineScorer,
    FixedNoiseScorer,
    JitterScorer,
    LinearScorer,
    NoisyScorer,
    PrototypeScorer,
    ZeroScorer,
)
from terramoe.moe.selectors import (
    All,
    Balanced,
    ExpertChoice,
    GroupedSoftmax,
    GroupLimited,
    HashedItem,
    Support,
    Table,
    TopK,
    TopOfEachGroup,
    TopP,
)
from terramoe.moe.soft import SoftMoELayer
from terramoe.moe.stochastic import random_expert_layer


@recipe(
    title="Outrageously Large Neural Networks: The Sparsely-Gated Mixture-of-Experts Layer",
    year=2017,
    source="arXiv 1701.06538",
    equation="y = sum_i softmax(KeepTopK(x W_g + eps softplus(x W_n)))_i E_i(x)",
    objectives={"importance_cv2": 0.1, "load_cv2": 0.1},
    invariants=("P1", "P2", "P3", "P11", "P15", "P23"),
    oracle="closed form (the smooth load sums to k)",
)
def noisy_topk(dim: int, num_experts: int, hidden: int, k: int = 2) -> MoELayer:
    scorer = LinearScorer(dim, num_experts)
    nn.init.zeros_(scorer.linear.weight)
    return MoELayer(
        NoisyScorer(scorer, dim, num_experts),
        StackedFFN(num_experts, dim, hidden, activation="relu"),
        selector=TopK(k),
        weigh=weighing.softmax_selected,
    )


@recipe(
    title="GShard: Scaling Giant Models with Conditional Computation and Automatic Sharding",
    year=2020,
    source="arXiv 2006.16668",
    equation="y = g_1 E_1(x) + g_2 E_2(x), g_1 + g_2 = 1 before the drop; C = 2 T / E; 2nd kept with probability 2 g_2",
    objectives={"gshard_balance": 0.01},
    invariants=("P1", "P2", "P5", "P10"),
    oracle="mixture-of-experts",
)
def gshard(
    dim: int, num_experts: int, hidden: int, capacity_factor: float = 1.0, *, random_second: bool = True
) -> MoELayer:
    return MoELayer(
        LinearScorer(dim, num_experts),
        StackedFFN(num_experts, dim, hidden),
        selector=TopK(2),
        weigh=weighing.renormalised,
        capacity=RandomSecond(FixedCapacity(capacity_factor, minimum=4), enabled=random_second),
    )


@recipe(
    title="Switch Transformers: Scaling to Trillion Parameter Models with Simple and Efficient Sparsity",
    year=2021,
    source="arXiv 2101.03961",
    equation="y = p_i(x) E_i(x), i = argmax p; capacity C = ceil(1.25 T / E)",
    objectives={"switch_balance": 0.01},
    invariants=("P1", "P3", "P5", "P11", "P12"),
    oracle="transformers SwitchTransformersSparseMLP",
)
def switch(dim: int, num_experts: int, hidden: int, capacity_factor: float = 1.25, jitter: float = 0.01) -> MoELayer:
    return MoELayer(
        JitterScorer(LinearScorer(dim, num_experts), jitter),
        StackedFFN(num_experts, dim, hidden, activation="relu", bias=False),
        selector=TopK(1),
        capacity=FixedCapacity(capacity_factor),
    )


@recipe(
    title="GLaM: Efficient Scaling of Language Models with Mixture-of-Experts",
    year=2021,
    source="arXiv 2112.06905",
    equation="y = g_1 E_1(x) + g_2 E_2(x), g_1 + g_2 = 1; gated experts; capacity factor 1.25",
    objectives={"gshard_balance": 0.01},
    invariants=("P1", "P2", "P5"),
    oracle="as gshard",
)
def glam(dim: int, num_experts: int, hidden: int, capacity_factor: float = 1.25) -> MoELayer:
    return MoELayer(
        LinearScorer(dim, num_experts),
        StackedFFN(num_experts, dim, hidden, activation="geglu", bias=False),
        selector=TopK(2),
        weigh=weighing.renormalised,
        capacity=FixedCapacity(capacity_factor),
    )


@recipe(
    title="Scaling Vision with Sparse Mixture of Experts",
    year=2021,
    source="arXiv 2106.05974",
    equation="y = sum over TopK(softmax(W x + eps)), eps ~ N(0, 1/E^2); no renormalisation; best items first",
    objectives={"importance_cv2": 0.005, "load_cv2": 0.005},
    invariants=("P1", "P5", "P6", "P7", "P23"),
    oracle="closed form (priority dominance)",
)
def vmoe(dim: int, num_experts: int, hidden: int, k: int = 2, capacity_factor: float = 1.05) -> MoELayer:
    return MoELayer(
        FixedNoiseScorer(LinearScorer(dim, num_experts), 1 / num_experts),
        StackedFFN(num_experts, dim, hidden),
        selector=TopK(k),
        capacity=FixedCapacity(capacity_factor, order="priority", multiple_of=4),
    )


@recipe(
    title="Multimodal Contrastive Learning with LIMoE: the Language-Image Mixture of Experts",
    year=2022,
    source="arXiv 2206.02770",
    equation="top-1 with priority; losses mean_t H(p_t) and relu(tau_m - H(mean_t p_t)) for each modality m",
    objectives={"local_entropy": 0.04, "global_entropy_hinge": 0.04, "router_z": 0.001},
    invariants=("P1", "P5", "P6", "P20"),
    oracle="closed form",
)
def limoe(dim: int, num_experts: int, hidden: int) -> MoELayer:
    return MoELayer(
        LinearScorer(dim, num_experts),
        StackedFFN(num_experts, dim, hidden),
        selector=TopK(1),
        capacity=FixedCapacity(1.05, order="priority"),
    )


@recipe(
    title="ST-MoE: Designing Stable and Transferable Sparse Expert Models",
    year=2022,
    source="arXiv 2202.08906",
    equation="top-2, renormalised, capacity factor 1.25; z-loss mean_t logsumexp(z_t)^2",
    objectives={"switch_balance": 0.01, "router_z": 0.001},
    invariants=("P1", "P2", "P5", "P11"),
    oracle="st-moe-pytorch",
)
def st_moe(dim: int, num_experts: int, hidden: int, capacity_factor: float = 1.25, jitter: float = 0.01) -> MoELayer:
    return MoELayer(
        JitterScorer(LinearScorer(dim, num_experts), jitter),
        StackedFFN(num_experts, dim, hidden, activation="geglu", bias=False),
        selector=TopK(2),
        weigh=weighing.renormalised,
        capacity=FixedCapacity(capacity_factor),
    )


@recipe(
    title="Mixture-of-Experts with Expert Choice Routing",
    year=2022,
    source="arXiv 2202.09368",
    equation="S = softmax_e(X W); expert e takes its C = 2 T / E items of greatest S; y_t = sum_e S_te E_e(x_t)",
    invariants=("P1", "P4", "P7", "P8"),
    oracle="closed form (loads exactly C)",
)
def expert_choice(dim: int, num_experts: int, hidden: int, per_item: float = 2.0) -> MoELayer:
    return MoELayer(
        LinearScorer(dim, num_experts), StackedFFN(num_experts, dim, hidden), selector=ExpertChoice(per_item)
    )


@recipe(
    title="From Sparse to Soft Mixtures of Experts",
    year=2023,
    source="arXiv 2308.00951",
    equation="D = softmax over items(X Phi), C = softmax over slots(X Phi); y = C E(D^T X)",
    invariants=("P29",),
    oracle="soft-moe-pytorch",
    call=one_sequence,
    routed=False,
)
def soft_moe(dim: int, num_experts: int, hidden: int, slots_per_expert: int = 1) -> SoftMoELayer:
    return SoftMoELayer(dim, StackedFFN(num_experts, dim, hidden), slots_per_expert)


@recipe(
    title="Harder Tasks Need More Experts: Dynamic Routing in MoE Models",
    year=2024,
    source="arXiv 2403.07652",
    equation="smallest set of experts with sum p >= 0.4, weights p; loss on the entropy of p",
    objectives={"local_entropy": 1e-4, "switch_balance": 0.01},
    invariants=("P1", "P9", "P14"),
    oracle="closed form (minimality)",
)
def dynamic_top_p(dim: int, num_experts: int, hidden: int, p: float = 0.4) -> MoELayer:
    return MoELayer(LinearScorer(dim, num_experts), StackedFFN(num_experts, dim, hidden), selector=TopP(p))


@recipe(
    title="Hash Layers for Large Sparse Models",
    year=2021,
    source="arXiv 2106.04426",
    equation="y = E_{h(key)}(x), h a fixed balanced table of tiles, bands, sensors or tokens",
    invariants=("P1", "P22"),
    oracle="closed form",
    call=with_keys(cycle("token", 32)),
    routed=False,
)
def hash_layer(dim: int, num_experts: int, hidden: int, key: str = "token", num_values: int = 32) -> MoELayer:
    table = Table.balanced(key, [1.0] * num_values, num_experts)
    bank = StackedFFN(num_experts, dim, hidden, activation="relu")
    return MoELayer(ZeroScorer(num_experts), bank, selector=table, weigh=weighing.ones)


@recipe(
    title="BASE Layers: Simplifying Training of Large, Sparse Models",
    year=2021,
    source="arXiv 2103.16716",
    equation="y = sigmoid(x . w_a) E_a(x), a = argmax of the total score under equal loads",
    invariants=("P1", "P4"),
    oracle="scipy linear_sum_assignment",
)
def base_layer(dim: int, num_experts: int, hidden: int, *, greedy: bool = False) -> MoELayer:
    bank = StackedFFN(num_experts, dim, hidden, activation="relu")
    nn.init.zeros_(bank.w_out_EHD)  # with the residual of its block the layer starts as the identity
    nn.init.zeros_(bank.b_out_ED)
    return MoELayer(
        PrototypeScorer(dim, num_experts),
        bank,
        selector=TopK(1) if greedy else Balanced(),
        weigh=weighing.sigmoid_of_logit,
    )


@recipe(
    title="DSelect-k: Differentiable Selection in the Mixture of Experts with Applications to Multi-Task Learning",
    year=2021,
    source="arXiv 2106.03760",
    equation="q = sum_j softmax(w)_j r(z_j), r_i(z) = prod_b S(z_b) or 1 - S(z_b) by the code of i",
    invariants=("P1", "P9"),
    oracle="closed form",
)
def dselect_k(dim: int, num_experts: int, hidden: int, k: int = 2) -> MoELayer:
    scorer = BinaryCodeScorer(num_experts, min(k, num_experts), dim=dim)
    return MoELayer(scorer, StackedFFN(num_experts, dim, hidden), selector=Support())


@recipe(
    title="Lory: Fully Differentiable Mixture-of-Experts for Autoregressive Language Model Pre-training",
    year=2024,
    source="arXiv 2405.03133",
    equation="segment s uses the one expert with parameters sum_i p_i(mean of segment s - 1) theta_i",
    invariants=("P19", "P30"),
    oracle="closed form (a one-hot gate is that expert)",
    reconstruction="where the stop-gradient of the first segment sits",
    call=one_sequence,
)
def lory(dim: int, num_experts: int, hidden: int, segment_length: int = 4) -> SegmentMergedFFN:
    layer = MoELayer(LinearScorer(dim, num_experts), StackedFFN(num_experts, dim, hidden), selector=All())
    return SegmentMergedFFN(layer, segment_length)


@recipe(
    title="Taming Sparsely Activated Transformer with Stochastic Experts",
    year=2021,
    source="arXiv 2110.04260",
    equation="y = E_i(x), i uniform; loss CE_1 + CE_2 + (KL(p_1|p_2) + KL(p_2|p_1)) / 2 over two draws",
    invariants=("P1", "P23"),
    oracle="closed form",
    control="two forwards a step (stochastic.two_view_loss)",
    routed=False,
)
def thor(dim: int, num_experts: int, hidden: int) -> MoELayer:
    return random_expert_layer(StackedFFN(num_experts, dim, hidden))


@recipe(
    title="HetuMoE: An Efficient Trillion-scale Mixture-of-Expert Distributed Training System",
    year=2022,
    source="arXiv 2203.14685",
    equation="SAM gate: the group of experts with the largest sum of p, then top-k inside it",
    invariants=("P1", "P5"),
    oracle="closed form",
    reconstruction="the alignment hinge (objectives.group_alignment_hinge), read off the operator's name",
)
def hetu_sam(dim: int, num_experts: int, hidden: int, k: int = 2, groups: int = 2) -> MoELayer:
    return MoELayer(
        LinearScorer(dim, num_experts),
        StackedFFN(num_experts, dim, hidden),
        selector=GroupLimited(min(k, num_experts // groups), groups, limit=1, best_of=None),
        capacity=FixedCapacity(1.25),
    )


@recipe(
    title="HetuMoE: An Efficient Trillion-scale Mixture-of-Expert Distributed Training System",
    year=2022,
    source="arXiv 2203.14685",
    equation="y = E_i(x), i = (sum_b 2^b [r_b . x > 0]) mod E, r fixed and Gaussian",
    invariants=("P1", "P22"),
    oracle="closed form (near items share a bucket)",
    reconstruction="the hash itself",
    routed=False,
)
def hetu_lsh(dim: int, num_experts: int, hidden: int, bits: int = 8) -> MoELayer:
    bank = StackedFFN(num_experts, dim, hidden)
    return MoELayer(ZeroScorer(num_experts), bank, selector=HashedItem(dim, bits=bits), weigh=weighing.ones)


@recipe(
    title="M6-T: Exploring Sparse Expert Models and Beyond",
    year=2021,
    source="arXiv 2105.15082",
    equation="k prototypes of E / k experts; softmax and top-1 inside each; y = sum of the k",
    objectives={"group_balance": 0.01},
    invariants=("P1", "P3"),
    oracle="closed form",
)
def prototypes(dim: int, num_experts: int, hidden: int, k: int = 2) -> MoELayer:
    return MoELayer(
        LinearScorer(dim, num_experts),
        StackedFFN(num_experts, dim, hidden),
        selector=TopOfEachGroup(k),
        link=GroupedSoftmax(k),
    )


@recipe(
    title="Tutel: Adaptive Mixture-of-Experts at Scale",
    year=2022,
    source="arXiv 2206.03382",
    equation="z = exp(s) cos(P x, m_e); top-k, renormalised; capacity as large as the batch needs",
    objectives={"gshard_balance": 0.01},
    invariants=("P1", "P2", "P5"),
    oracle="torch cosine_similarity",
)
def tutel(dim: int, num_experts: int, hidden: int, k: int = 2, most: float | None = None) -> MoELayer:
    return MoELayer(
        CosineScorer(dim, num_experts),
        StackedFFN(num_experts, dim, hidden),
        selector=TopK(k),
        weigh=weighing.renormalised,
        capacity=AdaptiveCapacity(most),
    )


@recipe(
    title="Pre-gated MoE: An Algorithm-System Co-Design for Fast and Scalable Mixture-of-Expert Inference",
    year=2023,
    source="arXiv 2308.12066",
    equation="h <- h + MoE_l(h) with the routing of block l made from the input of block l - 1",
    invariants=("P1", "P21"),
    oracle="closed form (two layers by hand)",
)
def pre_gated(dim: int, num_experts: int, hidden: int, blocks: int = 2) -> PreGatedStack:
    return PreGatedStack(
        [
            MoELayer(LinearScorer(dim, num_experts), StackedFFN(num_experts, dim, hidden), selector=TopK(1))
            for _ in range(blocks)
        ]
    )


class _ImageOfItem(nn.Module):
    """Runs a layer over images on flat items, so that this recipe can be tried like the others."""

    def __init__(self, layer: MoELayer, side: int) -> None:
        super().__init__()
        self.layer, self.side = layer, side

    def forward(self, x: Tensor) -> tuple[Tensor, Routing]:
        y, routing = self.layer(x[:, None, None].expand(-1, self.side, self.side, -1))
        return y.mean((1, 2)), routing


@recipe(
    title="Deep Mixture of Experts via Shallow Embedding",
    year=2018,
    source="arXiv 1806.01531",
    equation="y = relu(W e(x)) * conv(x), channel by channel; loss lambda |g|_1 + mu CE(e)",
    objectives={"gate_l1": 0.001},
    invariants=("P1",),
    oracle="masked convolution",
    control="second stage with the gates frozen (experts.channels.freeze_gates)",
)
def deepmoe(dim: int, num_experts: int, hidden: int) -> nn.Module:
    scorer = LinearScorer(dim, num_experts, bias=True)
    with torch.no_grad():
        scorer.linear.bias.fill_(0.5)  # gates start open
    layer = MoELayer(scorer, ChannelBank(dim, num_experts), selector=Support(), link=links.relu)
    return _ImageOfItem(layer, side=3)
