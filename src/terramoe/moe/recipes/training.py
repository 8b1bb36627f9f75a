"""How experts are kept in use and apart while training."""

from __future__ import annotations

from torch import nn

from terramoe.moe import links, weighing
from terramoe.moe.capacity import FixedCapacity
from terramoe.moe.controllers import BiasedSelector, DroppingSelector, ReplaySelector, TemperedLink
from terramoe.moe.experts import StackedFFN
from terramoe.moe.layer import MoELayer
from terramoe.moe.recipes.recipe import recipe
from terramoe.moe.scorers import FrozenScorer, GumbelScorer, HierarchicalScorer, LinearScorer
from terramoe.moe.selectors import All, SampleFromTop, Support, TopK


@recipe(
    title="Adaptive Mixtures of Local Experts",
    year=1991,
    source="DOI 10.1162/neco.1991.3.1.79",
    equation="y = sum_i softmax(V x)_i E_i(x); trained by -log sum_i g_i exp(-|y - o_i|^2 / 2)",
    invariants=("P1", "P24", "P25"),
    oracle="terramoe.mixtures (EM), closed-form gradient",
)
def local_experts(dim: int, num_experts: int, hidden: int) -> MoELayer:
    return MoELayer(LinearScorer(dim, num_experts, bias=True), StackedFFN(num_experts, dim, hidden), selector=All())


@recipe(
    title="Hierarchical Mixtures of Experts and the EM Algorithm",
    year=1994,
    source="DOI 10.1162/neco.1994.6.2.181",
    equation="y = sum_ij g_i(x) g_{j|i}(x) E_ij(x)",
    invariants=("P1", "P17", "P18"),
    oracle="terramoe.mixtures.HierarchicalMixture (EM)",
)
def hierarchical(dim: int, num_experts: int, hidden: int, groups: int = 2) -> MoELayer:
    scorer = HierarchicalScorer(dim, groups, num_experts // groups)
    return MoELayer(scorer, StackedFFN(num_experts, dim, hidden), selector=All())


@recipe(
    title="Auxiliary-Loss-Free Load Balancing Strategy for Mixture-of-Experts",
    year=2024,
    source="arXiv 2408.15664",
    equation="choose by sigmoid(z) + b, weight by sigmoid(z); b_i += 0.001 sign(mean load - load_i)",
    invariants=("P1", "P13"),
    oracle="transformers DeepseekV3MoE (selection)",
    control="LossFreeBias",
)
def loss_free(dim: int, num_experts: int, hidden: int, k: int = 2) -> MoELayer:
    return MoELayer(
        LinearScorer(dim, num_experts),
        StackedFFN(num_experts, dim, hidden),
        selector=BiasedSelector(TopK(k), num_experts),
        link=links.sigmoid,
        weigh=weighing.renormalised,
    )


@recipe(
    title="One Must Imagine Experts Happy: Rebalancing Neural Routers via Constrained Optimization",
    year=2025,
    source="ICLR 2025 workshop on sparsity in LLMs, OpenReview gsAkhArtfT",
    equation="support of sparsemax(z - lambda); lambda <- (1 - rho) lambda + eta (load share - 1/E)",
    invariants=("P1", "P13", "P16"),
    oracle="entmax (sparsemax)",
    control="DualAscent",
    reconstruction="update constants; weights are the softmax over the chosen, so that lambda never enters them",
)
def dual_ascent(dim: int, num_experts: int, hidden: int, most: int = 4) -> MoELayer:
    return MoELayer(
        LinearScorer(dim, num_experts),
        StackedFFN(num_experts, dim, hidden),
        selector=BiasedSelector(Support(most, of_logits=True), num_experts, on="logits"),
        weigh=weighing.softmax_selected,
        capacity=FixedCapacity(2.0, order="priority"),
    )


@recipe(
    title="Load Balancing Mixture of Experts with Similarity Preserving Routers",
    year=2025,
    source="arXiv 2506.14038",
    equation="top-k; loss |R^T R - I|_1 on the router matrix, which starts orthogonal",
    objectives={"router_orthogonality": 0.1},
    invariants=("P1", "P3"),
    oracle="closed form",
    reconstruction="the weight of the loss",
)
def simbal(dim: int, num_experts: int, hidden: int, k: int = 2) -> MoELayer:
    scorer = LinearScorer(dim, num_experts)
    nn.init.orthogonal_(scorer.linear.weight)
    return MoELayer(scorer, StackedFFN(num_experts, dim, hidden), selector=TopK(k))


@recipe(
    title="SimSMoE: Solving Representational Collapse via Similarity Measure",
    year=2024,
    source="arXiv 2406.15883",
    equation="top-2; when a pair is chosen together often, loss CKA(E_i(x), E_j(x)) above 0.5",
    objectives={"switch_balance": 0.01, "expert_similarity_hinge": 1.0},
    invariants=("P1", "P2"),
    oracle="closed form (CKA)",
    control="PairCounter",
)
def simsmoe(dim: int, num_experts: int, hidden: int) -> MoELayer:
    return MoELayer(
        LinearScorer(dim, num_experts),
        StackedFFN(num_experts, dim, hidden),
        selector=TopK(2),
        weigh=weighing.softmax_selected,
    )


@recipe(
    title="Sparse MoE as the New Dropout: Scaling Dense and Self-Slimmable Transformers",
    year=2023,
    source="arXiv 2303.01610",
    equation="router random and frozen; k grows from 1 to E while training",
    invariants=("P1", "P15"),
    oracle="closed form",
    control="KSchedule",
    routed=False,
)
def smoe_dropout(dim: int, num_experts: int, hidden: int, k: int = 1) -> MoELayer:
    return MoELayer(
        FrozenScorer(LinearScorer(dim, num_experts)),
        StackedFFN(num_experts, dim, hidden),
        selector=TopK(k),
        weigh=weighing.softmax_selected,
    )


@recipe(
    title="MoEC: Mixture of Expert Clusters",
    year=2022,
    source="arXiv 2207.09094",
    equation="top-k among clusters of experts; loss on the variance of p inside a cluster; experts dropped per cluster",
    objectives={"switch_balance": 0.01, "cluster_variance": 0.01},
    invariants=("P1", "P5"),
    oracle="closed form",
    control="ExpertDropout",
    reconstruction="the loss and the dropout, of which only the idea could be read",
)
def moec(dim: int, num_experts: int, hidden: int, k: int = 1, cluster_size: int = 2) -> MoELayer:
    clusters = [e // cluster_size for e in range(num_experts)]
    return MoELayer(
        LinearScorer(dim, num_experts),
        StackedFFN(num_experts, dim, hidden),
        selector=DroppingSelector(TopK(k), num_experts, clusters),
        capacity=FixedCapacity(1.25),
    )


@recipe(
    title="Elastic MoE: Unlocking the Inference-Time Scalability of Mixture-of-Experts",
    year=2025,
    source="arXiv 2509.21892",
    equation="k experts drawn from the best k'; renormalised; loss mean H(p) - log E",
    objectives={"ranking_sharpness": 0.01},
    invariants=("P1", "P2", "P3"),
    oracle="closed form",
    reconstruction="the uniform draw and the form of the loss",
)
def elastic(dim: int, num_experts: int, hidden: int, k: int = 2, pool: int = 3) -> MoELayer:
    return MoELayer(
        LinearScorer(dim, num_experts),
        StackedFFN(num_experts, dim, hidden),
        selector=SampleFromTop(k, min(pool, num_experts)),
        weigh=weighing.renormalised,
    )


@recipe(
    title="Stabilizing MoE Reinforcement Learning by Aligning Training and Inference Routers",
    year=2025,
    source="arXiv 2510.11370",
    equation="g_i = I_i exp(s_i) / sum_j I_j exp(s_j), I recorded, s from the training pass",
    invariants=("P1", "P15", "P21"),
    oracle="closed form",
    control="RecordReplay",
)
def routing_replay(dim: int, num_experts: int, hidden: int, k: int = 2) -> MoELayer:
    return MoELayer(
        LinearScorer(dim, num_experts),
        StackedFFN(num_experts, dim, hidden),
        selector=ReplaySelector(TopK(k)),
        weigh=weighing.softmax_selected,
    )


@recipe(
    title="EvoMoE: An Evolutional Mixture-of-Experts Training Framework via Dense-To-Sparse Gate",
    year=2021,
    source="arXiv 2112.14397",
    equation="Gumbel softmax with a falling temperature; dense at first, sparse at last",
    objectives={"switch_balance": 0.01},
    invariants=("P1", "P23"),
    oracle="closed form",
    control="TemperatureSchedule, KSchedule",
)
def dense_to_sparse(dim: int, num_experts: int, hidden: int, k: int = 2, temperature: float = 2.0) -> MoELayer:
    return MoELayer(
        GumbelScorer(LinearScorer(dim, num_experts)),
        StackedFFN(num_experts, dim, hidden),
        selector=TopK(k),
        link=TemperedLink(temperature),
    )
