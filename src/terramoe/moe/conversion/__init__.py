"""Conversions: from dense networks to experts, and from many experts to fewer, smaller or one.

``dense_ffn`` reads a dense FFN and cuts experts from it, ``in_model`` puts experts in the place of a model's FFNs.
From dense to experts: ``upcycle`` (copies), ``split`` (neurons by importance), ``dynamic_k`` (clusters of neurons, as
many as an item needs), ``masked`` with ``mask_network`` and ``mask_losses`` (learned masks), ``expert_models`` (a whole
model per cluster of the data). From experts to fewer: ``prune``, ``merge``, ``condense`` (matrices of lower rank),
``layout_search``.
"""

from terramoe.moe.conversion.condense import (
    LowRankFFN,
    condense_bank,
    condense_linear,
    join_linear,
    low_rank,
    rank_for_energy,
    rank_parameters,
)
from terramoe.moe.conversion.dense_ffn import DenseFFN, read_ffn, slice_experts, stack_ffn, with_offset
from terramoe.moe.conversion.dynamic_k import (
    NormScorer,
    cluster_neurons,
    expert_norms,
    hidden_activations,
    norm_error,
    to_dynamic_k,
)
from terramoe.moe.conversion.expert_models import ClusterRouter, Clusters, MixedModels, balanced_clusters
from terramoe.moe.conversion.in_model import RoutedFFN, convert_ffns, find_ffns, recorded_inputs, routed_ffns
from terramoe.moe.conversion.layout_search import (
    LayerLayout,
    SearchResult,
    SearchSpace,
    elastic_ffn,
    elastic_layer,
    ffn_parameters,
    search,
)
from terramoe.moe.conversion.mask_losses import parameter_budget, prediction_kl, union_gap
from terramoe.moe.conversion.mask_network import MaskNetwork, sample_masks
from terramoe.moe.conversion.masked import MaskedBank, MaskedLayer, harden, under_masks
from terramoe.moe.conversion.merge import (
    GroupScorer,
    merge_back,
    merge_groups,
    merge_layer,
    similar_groups,
    similarity,
)
from terramoe.moe.conversion.prune import (
    least_used,
    most_used,
    prune_bank,
    prune_experts,
    prune_scorer,
)
from terramoe.moe.conversion.split import deal_neurons, distillation_loss, neuron_importance, split_by_importance
from terramoe.moe.conversion.upcycle import expert_state, upcycle_alternating, upcycle_ffn

__all__ = [
    "ClusterRouter",
    "Clusters",
    "DenseFFN",
    "GroupScorer",
    "LayerLayout",
    "LowRankFFN",
    "MaskNetwork",
    "MaskedBank",
    "MaskedLayer",
    "MixedModels",
    "NormScorer",
    "RoutedFFN",
    "SearchResult",
    "SearchSpace",
    "balanced_clusters",
    "cluster_neurons",
    "condense_bank",
    "condense_linear",
    "convert_ffns",
    "deal_neurons",
    "distillation_loss",
    "elastic_ffn",
    "elastic_layer",
    "expert_norms",
    "expert_state",
    "ffn_parameters",
    "find_ffns",
    "harden",
    "hidden_activations",
    "join_linear",
    "least_used",
    "low_rank",
    "merge_back",
    "merge_groups",
    "merge_layer",
    "most_used",
    "neuron_importance",
    "norm_error",
    "parameter_budget",
    "prediction_kl",
    "prune_bank",
    "prune_experts",
    "prune_scorer",
    "rank_for_energy",
    "rank_parameters",
    "read_ffn",
    "recorded_inputs",
    "routed_ffns",
    "sample_masks",
    "search",
    "similar_groups",
    "similarity",
    "slice_experts",
    "split_by_importance",
    "stack_ffn",
    "to_dynamic_k",
    "under_masks",
    "union_gap",
    "upcycle_alternating",
    "upcycle_ffn",
    "with_offset",
]
