"""The default executor: sort the pairs by expert, run each expert once on its contiguous rows."""

from __future__ import annotations

import torch
from torch import Tensor

from terramoe.moe.executors.combine import combine
from terramoe.moe.experts import Bank
from terramoe.moe.routing import Routing


def grouped(x: Tensor, routing: Routing, bank: Bank) -> Tensor:
    """Items (T, ..., D) -> (T, ..., D_out)."""
    rows = routing.kept.nonzero().squeeze(1)
    rows = rows[torch.argsort(routing.expert[rows], stable=True)]
    item = routing.item[rows]
    y = bank.run_sorted(x[item], routing.load().tolist())
    return combine(y, item, routing.weight[rows], x.shape[0])
