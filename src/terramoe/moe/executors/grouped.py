"""Sort the pairs by expert and run each expert once on its contiguous rows: the fast executor."""

from __future__ import annotations

from torch import Tensor

from terramoe.moe.experts import Bank
from terramoe.moe.routing import Routing


def grouped(x: Tensor, routing: Routing, bank: Bank) -> Tensor:
    """Items (T, ..., D) -> (T, ..., D_out)."""
    return bank.run_routed(x, routing)
