"""One buffer of equal size for each expert and batched products: the layout that spreads over devices."""

from __future__ import annotations

import torch
from torch import Tensor

from terramoe.moe.experts import Bank
from terramoe.moe.routing import Routing
from terramoe.moe.sorting import combine_rows, sort_pairs, take_rows


def padded(x: Tensor, routing: Routing, bank: Bank) -> Tensor:
    """Items (T, ..., D) -> (T, ..., D_out). Buffers are (E, C, ..., D) with C the largest load; the rest is zero."""
    pairs = sort_pairs(routing)
    counts = torch.tensor(pairs.counts, device=x.device)
    size = max(1, max(pairs.counts))
    first = (counts.cumsum(0) - counts).repeat_interleave(counts)
    expert = torch.arange(bank.num_experts, device=x.device).repeat_interleave(counts)
    slot = expert * size + torch.arange(pairs.row.numel(), device=x.device) - first
    buffer = x.new_zeros(bank.num_experts * size, *x.shape[1:]).index_copy(0, slot, take_rows(x, pairs))
    y = bank.run_padded(buffer.view(bank.num_experts, size, *x.shape[1:])).flatten(0, 1)
    return combine_rows(y.index_select(0, slot), routing.weight, pairs)
