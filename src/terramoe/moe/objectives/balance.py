"""Objectives that keep the experts in use. Each is a pure function ``Routing -> scalar``, to be weighted by the user.

All count choices before capacity, over valid items only.
"""

from __future__ import annotations

import torch
from torch import Tensor

from terramoe.errors import RoutingError
from terramoe.moe.objectives.reductions import choice_share, distributions, group_ids, mean_prob, sum_by_group
from terramoe.moe.routing import Routing


def squared_cv(x: Tensor) -> Tensor:
    """Squared coefficient of variation, population form: var(x) / mean(x)^2; 0 for a single value."""
    return x.var(unbiased=False) / x.mean().square().clamp_min(torch.finfo(x.dtype).tiny)


def importance_cv2(routing: Routing) -> Tensor:
    """Squared CV of the summed combine weights (arXiv 1701.06538, 2017). 0 when all experts weigh the same."""
    return squared_cv(routing.importance())


def load_cv2(routing: Routing) -> Tensor:
    """Squared CV of a smooth estimate of the load (arXiv 1701.06538, 2017). Needs a noisy scorer in training.

    The estimate is the probability, over the noise of one expert alone, that the expert is among the item's top k;
    it is taken in logit space. Over the experts it sums to about k per item.
    """
    return squared_cv(smooth_load(routing))


def smooth_load(routing: Routing) -> Tensor:
    """(E,) expected number of items that choose each expert under fresh noise; RoutingError without noise."""
    if routing.clean_logits is None or routing.noise_std is None:
        raise RoutingError(
            "the load objective needs the noise of the router",
            where="load_cv2",
            fix="use NoisyScorer, and compute objectives in training mode only",
        )
    valid = routing.valid()
    noisy, k = routing.logits[valid], routing.num_choices
    if k >= routing.num_experts or noisy.shape[0] == 0:
        return torch.full_like(routing.logits[0], noisy.shape[0]) if routing.num_items else routing.probs.sum(0)
    ordered = noisy.sort(-1, descending=True).values
    last_in, first_out = ordered[:, k - 1 : k], ordered[:, k : k + 1]
    # An expert inside the top k must stay above the best one outside; one outside must pass the worst inside.
    threshold = torch.where(noisy >= last_in, first_out, last_in)
    z = (routing.clean_logits[valid] - threshold) / routing.noise_std[valid]
    return torch.special.ndtr(z).sum(0)


def switch_balance(routing: Routing) -> Tensor:
    """E * sum_i f_i P_i (Switch Transformers, 2021, arXiv 2101.03961).

    f_i is the share of choices that went to expert i (they sum to 1 whatever k is), P_i its mean probability. The
    value is 1 at balance for every k; it can be below 1, so it is no bound. The gradient runs through P alone.
    """
    return routing.num_experts * (choice_share(routing) * mean_prob(routing)).sum()


def gshard_balance(routing: Routing) -> Tensor:
    """E * sum_i f_i P_i with f from the first choices only (GShard, 2020, arXiv 2006.16668).

    Published as mean_i(f_i P_i), which is 1 / E^2 at balance; here scaled to 1, as ``switch_balance`` is, to which
    it is equal for k = 1. The gradient runs through P alone.
    """
    first = torch.bincount(routing.expert[routing.rank == 0], minlength=routing.num_experts)
    share = first.to(routing.probs.dtype) / first.sum().clamp_min(1)
    return routing.num_experts * (share * mean_prob(routing)).sum()


def group_balance(routing: Routing, groups: Tensor) -> Tensor:
    """sum_j f'_j P'_j over groups of experts, such as those of one device (DeepSeekMoE, 2024, arXiv 2401.06066).

    f'_j is the mean of E * f_i over the experts of group j, P'_j the sum of their P_i. The value is 1 at balance;
    with every expert a group of its own it is ``switch_balance``. The gradient runs through P alone.

    Args:
        routing: the decision.
        groups: (E,) integer group of each expert, 0 to G - 1.
    """
    groups = group_ids(groups.to(routing.expert.device), routing.num_experts, "group_balance")
    share = sum_by_group(routing.num_experts * choice_share(routing), groups) / torch.bincount(groups)
    return (share * sum_by_group(mean_prob(routing), groups)).sum()


def sequence_balance(routing: Routing, sequence: Tensor) -> Tensor:
    """``switch_balance`` inside each sequence, averaged over them (DeepSeek-V3, 2024, arXiv 2412.19437).

    Probabilities are divided by their sum over the experts first, as sigmoid scores need. 1 at balance. A sequence
    is whatever must be balanced by itself: a scene, a time series, a window. Those without a valid item do not count.

    Args:
        routing: the decision.
        sequence: (T,) integer sequence of each item; any ids.
    """
    if sequence.shape != (routing.num_items,) or sequence.is_floating_point():
        raise RoutingError(
            f"sequence ids have shape {tuple(sequence.shape)} and type {sequence.dtype}",
            where="sequence_balance",
            fix=f"give one integer for each of the {routing.num_items} items",
        )
    if routing.num_items == 0:
        return routing.probs.sum()
    ids = torch.unique(sequence.to(routing.item.device), return_inverse=True)[1]
    probs, count = distributions(routing), int(ids.max()) + 1
    items = probs.new_zeros(count).index_add(0, ids, routing.valid().to(probs.dtype))
    mean = probs.new_zeros(count, routing.num_experts).index_add(0, ids, probs) / items.clamp_min(1)[:, None]
    cell = ids[routing.item] * routing.num_experts + routing.expert
    demand = torch.bincount(cell, minlength=mean.numel()).view_as(mean)
    demand = demand.to(mean.dtype)
    share = demand / demand.sum(-1, keepdim=True).clamp_min(1)
    value = routing.num_experts * (share * mean).sum(-1)
    return value.sum() / (items > 0).sum().clamp_min(1)
