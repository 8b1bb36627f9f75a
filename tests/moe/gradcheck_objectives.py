"""Gradient cases of objectives."""

import torch
from gradcheck_cases import GROUPS, MASK, D, E, T, case, leaf, of_logits, of_values, route

from terramoe.moe import links, objectives
from terramoe.moe.objectives import reductions
from terramoe.moe.selectors import Support

MODALITY = {"modality": torch.tensor([0, 1, 0, 1, 0])}
for _name, _cases in {
    "importance_cv2": {"": of_logits(objectives.importance_cv2)},
    "switch_balance": {"": of_logits(objectives.switch_balance)},
    "gshard_balance": {"": of_logits(objectives.gshard_balance)},
    "group_balance": {"": of_logits(lambda r: objectives.group_balance(r, GROUPS))},
    "sequence_balance": {
        "": of_logits(lambda r: objectives.sequence_balance(r, torch.tensor([7, 7, 7, 2, 2])), link=links.sigmoid)
    },
    "local_entropy": {
        "": of_logits(objectives.local_entropy),
        "modality": of_logits(lambda r: objectives.local_entropy(r, 1), keys=MODALITY),
    },
    "global_entropy_hinge": {"": of_logits(objectives.global_entropy_hinge)},
    "ranking_sharpness": {"": of_logits(objectives.ranking_sharpness)},
    "gjs_divergence": {"": of_logits(objectives.gjs_divergence)},
    "router_z": {"": of_logits(objectives.router_z)},
    "cluster_variance": {"": of_logits(lambda r: objectives.cluster_variance(r, GROUPS))},
    "group_alignment_hinge": {"": of_logits(lambda r: objectives.group_alignment_hinge(r, GROUPS))},
    "gate_l1": {"": of_logits(objectives.gate_l1, link=links.relu, selector=Support())},
    "router_cross_entropy": {
        "": of_logits(lambda r: objectives.router_cross_entropy(r, torch.tensor([0, -1, 2, 3, 1])))
    },
    "mean_prob": {"": of_logits(reductions.mean_prob)},
    "distributions": {"": of_logits(reductions.distributions, link=links.sigmoid)},
    "task_expert_mass": {
        "": of_logits(lambda r: objectives.task_expert_mass([r, r])),
        "by key": of_logits(lambda r: objectives.task_expert_mass([r], "modality"), keys=MODALITY),
    },
    "negative_mutual_information": {
        "": of_logits(lambda r: objectives.negative_mutual_information([r], "modality"), keys=MODALITY)
    },
    "squared_cv": {"": of_values(objectives.squared_cv, (E,))},
    "selector_entropy": {"": of_values(lambda z: objectives.selector_entropy(z.softmax(-1)), (T, 2, E))},
    "selector_mass": {"": of_values(lambda z: objectives.selector_mass(z.sigmoid()), (T, 2, E))},
    "router_orthogonality": {"": of_values(objectives.router_orthogonality, (E, D))},
    "linear_cka": {"": of_values(objectives.linear_cka, (T, D), (T, 2))},
    "rbf_cka": {"": of_values(objectives.rbf_cka, (T, D), (T, 2))},
    "expert_similarity_hinge": {
        kernel: of_values(
            lambda a, b, kernel=kernel: objectives.expert_similarity_hinge(a, b, threshold=0.01, kernel=kernel),
            (T, D),
            (T, D),
        )
        for kernel in ("linear", "rbf")
    },
    "output_correlation": {"": of_values(objectives.output_correlation, (E, T, D))},
    "hoyer_square": {"": of_values(objectives.hoyer_square, (T, D))},
    "symmetric_kl": {
        "": of_values(objectives.symmetric_kl, (T, D), (T, D)),
        "masked": of_values(lambda a, b: objectives.symmetric_kl(a, b, mask=MASK), (T, D), (T, D)),
    },
    "mutual_information": {"": of_values(lambda z: objectives.mutual_information(z.exp()), (2, E))},
    "gating_balance": {"": of_values(lambda z: objectives.gating_balance(z.softmax(-1)), (2, E))},
    "at_least_float32": {"": of_values(reductions.at_least_float32, (T,))},
    "mean_over": {"": of_values(lambda x: reductions.mean_over(MASK, x), (T, 2))},
    "entropy": {"": of_values(lambda z: reductions.entropy(z.softmax(-1)), (T, E))},
    "sum_by_group": {"": of_values(lambda x: reductions.sum_by_group(x, GROUPS), (T, E))},
}.items():
    for _label, _make in _cases.items():
        case(f"objectives.{_name}", _label)(_make)

for _name in ("load_cv2", "smooth_load"):

    @case(f"objectives.{_name}")
    def smooth_load(name=_name):
        objective = getattr(objectives, name)
        z, clean, spread = leaf(T, E), leaf(T, E, seed=2), leaf(T, E, seed=3)
        return lambda: objective(route(z, clean, spread.exp(), mask=MASK)), [z, clean, spread]
