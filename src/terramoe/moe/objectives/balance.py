"""Objectives that keep the experts in use. Each is a pure function ``Routing -> scalar``, to be weighted by the user.

All count every choice of an item, before capacity, over valid items only.
"""

from __future__ import annotations

import torch
from torch import Tensor

from terramoe.errors import RoutingError
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
    valid = routing.valid()
    share = routing.demand().to(routing.probs.dtype) / max(routing.expert.numel(), 1)
    mean_prob = torch.where(valid[:, None], routing.probs, 0.0).sum(0) / valid.sum().clamp_min(1)
    return routing.num_experts * (share * mean_prob).sum()
