"""Objectives over several routings: tasks that should use their own experts, blocks that should share the work."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from terramoe.errors import RoutingError
from terramoe.moe.objectives.reductions import distributions
from terramoe.moe.routing import Routing


def task_expert_mass(routings: Sequence[Routing], key: str | None = None) -> Tensor:
    """(tasks, E): probability mass that the items of each task gave to each expert, over valid items.

    Args:
        routings: decisions over the same experts; they accumulate.
        key: read the task of each item from ``keys[key]`` (T,), ids from 0. None: the i-th routing is task i.

    Raises:
        RoutingError: no routing, different numbers of experts, a missing key, or ids below 0.
    """
    if len({routing.num_experts for routing in routings}) != 1:
        raise RoutingError(
            f"got {len(routings)} routings over {sorted({r.num_experts for r in routings})} experts",
            where="task_expert_mass",
            fix="give at least one routing, all over the same experts",
        )
    tasks = [_tasks(routing, index, key) for index, routing in enumerate(routings)]
    count = max((int(ids.max()) + 1 for ids in tasks if ids.numel()), default=1)
    mass = routings[0].probs.new_zeros(max(count, 1), routings[0].num_experts)
    for routing, ids in zip(routings, tasks, strict=True):
        mass = mass.index_add(0, ids, distributions(routing))
    return mass


def mutual_information(mass: Tensor) -> Tensor:
    """Mutual information of task and expert, in nats: sum P(t, e) log(P(t, e) / (P(t) P(e))).

    0 when the choice says nothing about the task; at most log of the smaller of tasks and experts, which a
    one-to-one map reaches (Mod-Squad, 2022, arXiv 2212.08066).

    Args:
        mass: (tasks, E) from ``task_expert_mass``. Masses of several steps may be added, the earlier ones detached.
    """
    total = mass.sum()
    joint = mass / torch.where(total > 0, total, 1.0)
    tiny = torch.finfo(mass.dtype).tiny
    # Three logarithms, because the product of two small marginals could round to 0.
    log_ratio = joint.clamp_min(tiny).log() - (
        joint.sum(1, keepdim=True).clamp_min(tiny).log() + joint.sum(0).clamp_min(tiny).log()
    )
    return (joint * log_ratio).sum()


def negative_mutual_information(routings: Sequence[Routing], key: str | None = None) -> Tensor:
    """Minus the mutual information of task and expert: what Mod-Squad (arXiv 2212.08066) minimises. See above."""
    return -mutual_information(task_expert_mass(routings, key))


def gating_balance(gates: Tensor) -> Tensor:
    """-sum_i log q_i, q_i the mean gate of expert i over the rows (Mixture of LoRA Experts, 2024, arXiv 2404.13628).

    ``gates`` is (blocks, E), or (..., E) with more to average over. E log E at balance, its least value for gates
    that sum to 1; not divided by anything, as published.
    """
    q = gates.flatten(0, -2).mean(0)
    return -q.clamp_min(torch.finfo(q.dtype).tiny).log().sum()


def _tasks(routing: Routing, index: int, key: str | None) -> Tensor:
    if key is None:
        return torch.full_like(routing.logits[:, 0], index, dtype=torch.int64)
    if key not in routing.keys:
        raise RoutingError(
            f"the key '{key}' is missing (given: {sorted(routing.keys) or 'none'})",
            where="task_expert_mass",
            fix=f"pass keys={{'{key}': ids}} to the layer",
        )
    ids = routing.keys[key]
    if ids.ndim != 1 or ids.is_floating_point() or (ids.numel() > 0 and int(ids.min()) < 0):
        raise RoutingError(
            f"task ids have shape {tuple(ids.shape)} and type {ids.dtype}",
            where="task_expert_mass",
            fix="give one integer of at least 0 for each item",
        )
    return ids.to(torch.int64)
