"""Objectives on the entropy of the router: how sure it is of one item, and how evenly it uses the experts.

Over valid items only, in nats unless the name or docstring says otherwise. Probabilities are first divided by their
sum over the experts.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from terramoe.errors import RoutingError
from terramoe.moe.objectives.reductions import distributions, entropy, mean_over
from terramoe.moe.routing import Routing


def local_entropy(routing: Routing, modality: int | None = None) -> Tensor:
    """Mean entropy of the items' distributions: 0 when all are one-hot, log E when all are uniform.

    Minimised it makes single decisions sure (LIMoE, 2022, arXiv 2206.02770; the dynamic loss of Harder Tasks Need
    More Experts, 2024, arXiv 2403.07652).

    Args:
        routing: the decision.
        modality: count only items with this id in ``keys["modality"]``; None counts all. 0 where there are none.
    """
    return mean_over(_items(routing, modality), entropy(distributions(routing)))


def global_entropy_hinge(routing: Routing, threshold: float | None = None, modality: int | None = None) -> Tensor:
    """relu(threshold - H(mean distribution)) (LIMoE, 2022, arXiv 2206.02770).

    0 as soon as the mean distribution is as even as exp(threshold) experts used alike: a soft minimum number of
    experts. 0 where no item is of the modality.

    Args:
        routing: the decision.
        threshold: in nats; None takes log E, which asks for all experts alike.
        modality: count only items with this id in ``keys["modality"]``; None counts all.
    """
    items = _items(routing, modality)
    limit = math.log(routing.num_experts) if threshold is None else threshold
    hinge = torch.relu(limit - entropy(mean_over(items, distributions(routing))))
    return torch.where(items.any(), hinge, 0.0)


def ranking_sharpness(routing: Routing) -> Tensor:
    """Mean entropy minus log E, that is minus the mean KL divergence from uniform: -log E (one-hot) to 0 (uniform).

    Elastic Mixture-of-Experts, 2025, arXiv 2509.21892. Reconstruction: the published text says only that a
    KL-based loss makes the ranking of the experts sharp; the reference distribution, uniform, is filled in.
    """
    items = routing.valid()
    sharpness = entropy(distributions(routing)) - math.log(routing.num_experts)
    return mean_over(items, sharpness)


def gjs_divergence(routing: Routing, balance: float = 1.0, certainty: float = 0.0) -> Tensor:
    """Hinge on the generalised Jensen-Shannon divergence of the items, in units of log E (HMoRA, ICLR 2025).

    relu(balance - certainty - [min(H(m), balance) - mean_t max(H(p_t), certainty)]), all entropies divided by
    log E, m the mean distribution. By default 1 minus the divergence: 0 if and only if every item is sure of one
    expert and all experts are used alike, 1 when all items have the same distribution.

    Args:
        routing: the decision.
        balance: share of log E that is even enough for the mean distribution. Reconstruction of the default.
        certainty: share of log E that is sure enough for one item. Reconstruction of the default.
    """
    if not 0 <= certainty <= balance <= 1:
        raise RoutingError(
            f"balance {balance}, certainty {certainty}",
            where="gjs_divergence",
            fix="choose 0 <= certainty <= balance <= 1",
        )
    items = routing.valid()
    if routing.num_experts == 1:
        return distributions(routing).sum() * 0.0  # one expert is sure and balanced, and log E would be 0
    p, unit = distributions(routing), math.log(routing.num_experts)
    even = (entropy(mean_over(items, p)) / unit).clamp_max(balance)
    unsure = mean_over(items, (entropy(p) / unit).clamp_min(certainty))
    return torch.where(items.any(), torch.relu(balance - certainty - (even - unsure)), 0.0)


def selector_entropy(selectors: Tensor) -> Tensor:
    """Sum over the k single-expert selectors of their entropy, mean over items (DSelect-k, 2021, arXiv 2106.03760).

    ``selectors`` is (k, E), or (T, k, E) when they depend on the item. 0 if and only if every selector is binary.
    """
    return entropy(selectors).sum(-1).mean()


def selector_mass(selectors: Tensor) -> Tensor:
    """Sum over the k selectors of 1 / (mass on real experts), mean over items (DSelect-k, 2021, arXiv 2106.03760).

    ``selectors`` is (k, E) or (T, k, E); a selector loses mass to codes without an expert where E is no power of
    two. k when all mass is on experts, and larger else.
    """
    return selectors.sum(-1).clamp_min(torch.finfo(selectors.dtype).tiny).reciprocal().sum(-1).mean()


def _items(routing: Routing, modality: int | None) -> Tensor:
    """(T,) bool: valid items, of the modality if one is given."""
    if modality is None:
        return routing.valid()
    if "modality" not in routing.keys:
        raise RoutingError(
            f"the key 'modality' is missing (given: {sorted(routing.keys) or 'none'})",
            where="entropy by modality",
            fix="pass keys={'modality': ids} to the layer",
        )
    return routing.valid() & (routing.keys["modality"] == modality)
