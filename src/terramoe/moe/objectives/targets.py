"""Objectives with a target: a given expert for each item, or a second view that should agree."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from terramoe.errors import RoutingError
from terramoe.moe.objectives.reductions import at_least_float32, mean_over
from terramoe.moe.routing import Routing

NO_EXPERT = -1


def router_cross_entropy(routing: Routing, expert: Tensor) -> Tensor:
    """Cross-entropy of the router's logits with the expert that each item belongs to, mean over labelled valid items.

    log E for equal logits, whatever the labels. TT-LoRA MoE, 2025, arXiv 2504.21190. Reconstruction: the published
    text says that the router is trained on task labels; the cross-entropy is filled in.

    Args:
        routing: the decision.
        expert: (T,) integer expert of each item, -1 where unknown.
    """
    if expert.shape != (routing.num_items,) or expert.is_floating_point():
        raise RoutingError(
            f"labels have shape {tuple(expert.shape)} and type {expert.dtype}",
            where="router_cross_entropy",
            fix=f"give one integer expert for each of the {routing.num_items} items",
        )
    labelled = (expert != NO_EXPERT) & routing.valid()
    known = torch.where(labelled, expert, 0)
    if ((known < 0) | (known >= routing.num_experts)).any():
        raise RoutingError(
            f"labels reach from {int(known.min())} to {int(known.max())}",
            where="router_cross_entropy",
            fix=f"use experts 0 to {routing.num_experts - 1}, and -1 where unknown",
        )
    logits = torch.where(labelled[:, None], routing.logits, 0.0)
    return mean_over(labelled, functional.cross_entropy(logits, known.long(), reduction="none"))


def symmetric_kl(logits_a: Tensor, logits_b: Tensor, class_dim: int = -1, mask: Tensor | None = None) -> Tensor:
    """Half of KL(a | b) + KL(b | a) of two predictions, mean over the places, in nats; 0 when they agree.

    Two forward passes through different random experts should predict the same (Taming Sparsely Activated
    Transformer with Stochastic Experts, 2021, arXiv 2110.04260). The gradient reaches both.

    Args:
        logits_a, logits_b: of one shape, with the classes on ``class_dim``.
        mask: bool of that shape without classes; False places do not count. None: all do.
    """
    if logits_a.shape != logits_b.shape:
        raise RoutingError(
            f"predictions have shapes {tuple(logits_a.shape)} and {tuple(logits_b.shape)}",
            where="symmetric_kl",
            fix="give two predictions for the same rows",
        )
    log_a, log_b = (at_least_float32(x).log_softmax(class_dim) for x in (logits_a, logits_b))
    gap = 0.5 * ((log_a.exp() - log_b.exp()) * (log_a - log_b)).sum(class_dim)
    return gap.mean() if mask is None else mean_over(mask.flatten(), gap.flatten())
