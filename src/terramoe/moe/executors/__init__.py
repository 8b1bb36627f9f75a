"""Executors: ``(x, routing, bank) -> y``. They see pairs and weights, never scores, and all give the same result."""

from collections.abc import Callable

from torch import Tensor

from terramoe.errors import RoutingError
from terramoe.moe.executors.auto import auto
from terramoe.moe.executors.dense import dense
from terramoe.moe.executors.expert_parallel import ExpertParallel, shard_bank
from terramoe.moe.executors.gather import gather
from terramoe.moe.executors.grouped import grouped
from terramoe.moe.executors.loop import loop
from terramoe.moe.executors.padded import padded
from terramoe.moe.experts import Bank
from terramoe.moe.routing import Routing

Executor = Callable[[Tensor, Routing, Bank], Tensor]

EXECUTORS: dict[str, Executor] = {
    "auto": auto,
    "loop": loop,
    "grouped": grouped,
    "gather": gather,
    "dense": dense,
    "padded": padded,
}


def get_executor(name: str) -> Executor:
    """The executor of that name; RoutingError lists the names when there is none."""
    if name not in EXECUTORS:
        raise RoutingError(f"no executor '{name}'", where="executor", fix=f"use one of {', '.join(EXECUTORS)}")
    return EXECUTORS[name]


__all__ = [
    "EXECUTORS",
    "Executor",
    "ExpertParallel",
    "auto",
    "dense",
    "gather",
    "get_executor",
    "grouped",
    "loop",
    "padded",
    "shard_bank",
]
