"""Objectives over groups of experts: clusters that agree, and choices that stay inside one group."""

from __future__ import annotations

import torch
from torch import Tensor

from terramoe.moe.objectives.reductions import group_ids, mean_over, sum_by_group
from terramoe.moe.routing import Routing


def cluster_variance(routing: Routing, groups: Tensor, spread: float = 1.0) -> Tensor:
    """Variance inside the chosen cluster minus ``spread`` times the variance between clusters, mean over items.

    MoEC: Mixture of Expert Clusters, 2022, arXiv 2207.09094. Reconstruction: the formula was not at hand. Filled in:
    an item's cluster is the one with the largest summed probability; inside it the population variance of the
    probabilities; between the clusters the population variance of their mean probabilities. With spread 0 it is 0
    if and only if every item likes all experts of its cluster alike.

    Args:
        routing: the decision.
        groups: (E,) integer cluster of each expert, 0 to G - 1.
        spread: weight of the part that drives clusters apart, at least 0.
    """
    groups = group_ids(groups.to(routing.expert.device), routing.num_experts, "cluster_variance")
    probs = torch.where(routing.valid()[:, None], routing.probs, 0.0)
    mass, size = sum_by_group(probs, groups), torch.bincount(groups)
    mean = mass / size
    variance = sum_by_group((probs - mean[:, groups]).square(), groups) / size
    inside = variance.gather(-1, mass.argmax(-1, keepdim=True))[:, 0]
    between = (mean - mean.mean(-1, keepdim=True)).square().mean(-1)
    return mean_over(routing.valid(), inside - spread * between)


def group_alignment_hinge(routing: Routing, groups: Tensor) -> Tensor:
    """Sum of relu(p_i - p_k) over the experts i outside an item's group, mean over items.

    HetuMoE, 2022, arXiv 2203.14685. The group is the one with the largest summed probability, p_k the k-th largest
    probability inside it (the smallest where the group has fewer than k experts). 0 if and only if the best k experts
    lie in that group. Reconstruction: the published text names an alignment loss; the hinge is filled in.

    Args:
        routing: the decision; k is its number of choices.
        groups: (E,) integer group of each expert, 0 to G - 1.
    """
    groups = group_ids(groups.to(routing.expert.device), routing.num_experts, "group_alignment_hinge")
    probs = torch.where(routing.valid()[:, None], routing.probs, 0.0)
    best = sum_by_group(probs, groups).argmax(-1)
    inside = groups == best[:, None]
    ordered = torch.where(inside, probs, -torch.inf).sort(-1, descending=True).values
    last = torch.bincount(groups)[best].clamp_max(max(routing.num_choices, 1)) - 1
    excess = torch.relu(probs - ordered.gather(-1, last[:, None]))
    return mean_over(routing.valid(), torch.where(inside, 0.0, excess).sum(-1))
