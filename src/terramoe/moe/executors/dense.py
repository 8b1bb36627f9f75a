"""Run every expert on every item and mix: exact, exportable, and the fastest when all experts are used anyway."""

from __future__ import annotations

import torch
from torch import Tensor

from terramoe.moe.executors.combine import expand_like
from terramoe.moe.experts import Bank
from terramoe.moe.routing import Routing


def dense(x: Tensor, routing: Routing, bank: Bank) -> Tensor:
    """Items (T, ..., D) -> (T, ..., D_out)."""
    if routing.mask is not None:  # a masked item may hold NaN, and 0 * NaN is not 0
        x = torch.where(expand_like(routing.mask, x).bool(), x, torch.zeros_like(x))
    y = bank.run_all(x)
    weight = routing.dense().to(y.dtype)
    return torch.einsum("te,et...->t...", weight, y)
