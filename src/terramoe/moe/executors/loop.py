"""The reference executor: one expert after the other. The others are tested against it."""

from __future__ import annotations

from torch import Tensor

from terramoe.moe.executors.combine import combine
from terramoe.moe.experts import Bank
from terramoe.moe.routing import Routing


def loop(x: Tensor, routing: Routing, bank: Bank) -> Tensor:
    """Items (T, ..., D) -> (T, ..., D_out). An expert that nobody chose is not run."""
    y = None
    for expert in range(bank.num_experts):
        rows = ((routing.expert == expert) & routing.kept).nonzero().squeeze(1)
        if rows.numel():
            item = routing.item[rows]
            part = combine(bank.run(expert, x[item]), item, routing.weight[rows], x.shape[0])
            y = part if y is None else y + part
    if y is None:  # nobody was routed: run an expert on no rows to learn the output's shape
        y = combine(bank.run(0, x[:0]), routing.item[:0], routing.weight[:0], x.shape[0])
    return y
