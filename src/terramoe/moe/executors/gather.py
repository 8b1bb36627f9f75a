"""Gather the weights of the chosen expert for each row: no loop and no sort, so it exports; best for few rows."""

from __future__ import annotations

from torch import Tensor

from terramoe.moe.executors.combine import combine, expand_like
from terramoe.moe.experts import Bank
from terramoe.moe.routing import Routing


def gather(x: Tensor, routing: Routing, bank: Bank) -> Tensor:
    """Items (T, ..., D) -> (T, ..., D_out). RoutingError if the bank cannot gather weights."""
    y = bank.run_each(x[routing.item], routing.expert)
    kept = expand_like(routing.kept, y)  # dropped pairs are computed and then zeroed: shapes stay static
    return combine(y * kept, routing.item, routing.weight, x.shape[0])
