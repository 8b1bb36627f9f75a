"""Objectives: auxiliary losses as pure functions of a routing. Nothing is stored on modules.

``balance`` keeps the experts in use, ``entropies`` makes choices sure or even, ``tasks`` looks at several routings,
``groups`` at groups of experts, ``experts`` at their outputs and the router's weights, ``sparsity`` at gates and
activations, ``targets`` at given experts or a second view, ``z`` at the size of the logits.
"""

from collections.abc import Callable

from torch import Tensor

from terramoe.moe.objectives.balance import (
    group_balance,
    gshard_balance,
    importance_cv2,
    load_cv2,
    sequence_balance,
    smooth_load,
    squared_cv,
    switch_balance,
)
from terramoe.moe.objectives.entropies import (
    gjs_divergence,
    global_entropy_hinge,
    local_entropy,
    ranking_sharpness,
    selector_entropy,
    selector_mass,
)
from terramoe.moe.objectives.experts import (
    expert_similarity_hinge,
    linear_cka,
    output_correlation,
    rbf_cka,
    router_orthogonality,
)
from terramoe.moe.objectives.groups import cluster_variance, group_alignment_hinge
from terramoe.moe.objectives.sparsity import gate_l1, hoyer_square
from terramoe.moe.objectives.targets import router_cross_entropy, symmetric_kl
from terramoe.moe.objectives.tasks import (
    gating_balance,
    mutual_information,
    negative_mutual_information,
    task_expert_mass,
)
from terramoe.moe.objectives.z import router_z
from terramoe.moe.routing import Routing

Objective = Callable[[Routing], Tensor]

# By name: those that need a routing alone and move a softmax router (``gate_l1`` does not: probabilities sum to 1).
OBJECTIVES: dict[str, Objective] = {
    "importance_cv2": importance_cv2,
    "load_cv2": load_cv2,
    "switch_balance": switch_balance,
    "gshard_balance": gshard_balance,
    "local_entropy": local_entropy,
    "global_entropy_hinge": global_entropy_hinge,
    "ranking_sharpness": ranking_sharpness,
    "gjs_divergence": gjs_divergence,
    "router_z": router_z,
}

__all__ = [
    "OBJECTIVES",
    "Objective",
    "cluster_variance",
    "expert_similarity_hinge",
    "gate_l1",
    "gating_balance",
    "gjs_divergence",
    "global_entropy_hinge",
    "group_alignment_hinge",
    "group_balance",
    "gshard_balance",
    "hoyer_square",
    "importance_cv2",
    "linear_cka",
    "load_cv2",
    "local_entropy",
    "mutual_information",
    "negative_mutual_information",
    "output_correlation",
    "ranking_sharpness",
    "rbf_cka",
    "router_cross_entropy",
    "router_orthogonality",
    "router_z",
    "selector_entropy",
    "selector_mass",
    "sequence_balance",
    "smooth_load",
    "squared_cv",
    "switch_balance",
    "symmetric_kl",
    "task_expert_mass",
]
