"""Which rank holds which expert, and what that costs: pure functions for planning expert parallelism.

Shapes: E experts, R ranks. A placement is (E,) int64, the rank of each expert; ``load`` is (E,) pairs per expert
(``Routing.load``), ``counts`` is (R, E) pairs per expert from each rank.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from terramoe.errors import RoutingError


@dataclass(frozen=True)
class StepCost:
    """What a training step pays for, in seconds.

    Attributes:
        row_compute: one expert on one row, forward.
        row_transfer: one row to another rank.
        expert_transfer: the parameters of one expert to all ranks.
    """

    row_compute: float
    row_transfer: float
    expert_transfer: float

    def __post_init__(self) -> None:
        if not all(math.isfinite(s) and s >= 0 for s in (self.row_compute, self.row_transfer, self.expert_transfer)):
            raise RoutingError(f"{self}", where="StepCost", fix="use finite seconds of at least 0")


def experts_per_rank(num_experts: int, world: int) -> int:
    """E / R; RoutingError unless every rank gets equally many."""
    if world < 1 or num_experts % world:
        raise RoutingError(
            f"{num_experts} experts do not divide among {world} ranks",
            where="expert placement",
            fix="use a number of experts that is a multiple of the number of ranks",
        )
    return num_experts // world


def contiguous_placement(num_experts: int, world: int) -> Tensor:
    """(E,): the first E/R experts on rank 0, the next on rank 1, and so on."""
    return torch.arange(num_experts) // experts_per_rank(num_experts, world)


def balanced_placement(load: Tensor, world: int) -> Tensor:
    """(E,): the heaviest expert first, each to the least loaded rank that has room, E/R experts a rank.

    Longest processing time first (Bounds on Multiprocessing Timing Anomalies, 1969, DOI 10.1137/0117039), with a
    limit on the number a rank takes. The contiguous placement is returned where that is not lighter, so that no
    expert moves for nothing.

    Raises:
        RoutingError: a load that is not (E,) finite numbers of at least 0; E not a multiple of ``world``.
    """
    _check_load(load)
    contiguous, room = contiguous_placement(load.numel(), world), experts_per_rank(load.numel(), world)
    placement, total, taken = torch.empty_like(contiguous), [0.0] * world, [0] * world
    for expert in torch.argsort(load, descending=True, stable=True).tolist():
        rank = min((r for r in range(world) if taken[r] < room), key=lambda r: total[r])
        placement[expert] = rank
        total[rank] += float(load[expert])
        taken[rank] += 1
    lighter = rank_load(load, placement, world).max() < rank_load(load, contiguous, world).max()
    return placement if lighter else contiguous


def rank_load(load: Tensor, placement: Tensor, world: int) -> Tensor:
    """(R,) float64: pairs that each rank computes."""
    return torch.zeros(world, dtype=torch.float64).index_add(0, placement.cpu(), load.double().cpu())


def all_to_all_volume(counts: Tensor, placement: Tensor, node_size: int = 1) -> int:
    """Rows that leave their rank on the way to the experts; with ``node_size`` those that leave their node.

    The way back moves as many, and so do the gradients of both.
    """
    if counts.ndim != 2 or counts.shape[1:] != placement.shape or node_size < 1:
        raise RoutingError(
            f"counts {tuple(counts.shape)}, placement {tuple(placement.shape)}, node size {node_size}",
            where="all_to_all_volume",
            fix="give counts (ranks, experts), one rank for each expert, and a node size of at least 1",
        )
    source = torch.arange(counts.shape[0], device=counts.device)[:, None] // node_size
    travels = source != placement.to(counts.device) // node_size
    return int((counts * travels).sum())


def step_seconds(load: Tensor, placement: Tensor, world: int, cost: StepCost, shadowed: Tensor | None = None) -> float:
    """Modelled seconds of one training step, set by the busiest rank.

    Three times the forward computation, four all-to-all (there and back, and their gradients), and for each
    ``shadowed`` expert (ids) two transfers: its parameters go out and its gradients come back. A shadowed expert's
    rows are computed where they are and do not travel.

    Model of FasterMoE (2022, DOI 10.1145/3503221.3508418). Reconstruction: the load of a rank is the sum over its
    experts, items are spread evenly over the ranks, so a share 1/R of an expert's rows need not travel and each
    rank computes 1/R of a shadowed expert's rows.
    """
    home = load.double().cpu()
    shared = 0.0
    if shadowed is not None:
        shared = float(home[shadowed].sum()) / world
        home = home.index_fill(0, shadowed.cpu(), 0.0)
    busiest = float(rank_load(home, placement, world).max())
    seconds = 3 * cost.row_compute * (busiest + shared) + 4 * cost.row_transfer * busiest * (1 - 1 / world)
    return seconds + 2 * cost.expert_transfer * (0 if shadowed is None else shadowed.numel())


def shadow_experts(load: Tensor, world: int, cost: StepCost, placement: Tensor | None = None) -> Tensor:
    """(S,) ids of the experts worth copying to every rank for a step, hottest first; S may be 0.

    Expert shadowing of FasterMoE (2022, DOI 10.1145/3503221.3508418) with the cost of ``step_seconds``: of all sets
    "the s hottest experts" the cheapest, the smallest of them on a tie. ``placement`` is contiguous unless given.

    Raises:
        RoutingError: a load that is not (E,) finite numbers of at least 0; E not a multiple of ``world`` without a
            placement.
    """
    _check_load(load)
    if placement is None:
        placement = contiguous_placement(load.numel(), world)
    hottest = torch.argsort(load.cpu(), descending=True, stable=True)
    seconds = [step_seconds(load, placement, world, cost, hottest[:s]) for s in range(load.numel() + 1)]
    return hottest[: seconds.index(min(seconds))]


def _check_load(load: Tensor) -> None:
    if load.ndim != 1 or load.numel() == 0 or not bool((load.isfinite() & (load >= 0)).all()):
        raise RoutingError(
            f"a load of shape {tuple(load.shape)}", where="load", fix="give finite counts (experts,) of at least 0"
        )
