"""An executor that mixes experts in log space: ``y = log sum_e g_e exp(E_e(x))``, channel by channel.

For one expert of weight 1 this is the expert itself; for several it lies near the largest of ``E_e(x) + log g_e``.
It is another function than the weighted sum of the other executors, so it is not among ``EXECUTORS``: a layer asks for
it by ``MoELayer(..., executor=log_space)``.

Source: the dispatcher of noisy top-k gating that SpectralX (2026, ISPRS J. 239, 774-792) builds on. Its released code
takes the exponential first, which overflows in float32 from 89 on, and puts a small number where the sum vanishes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from terramoe.moe.executors.combine import expand_like
from terramoe.moe.experts import Bank
from terramoe.moe.routing import Routing
from terramoe.moe.sorting import sort_pairs, take_rows


def log_space(x: Tensor, routing: Routing, bank: Bank) -> Tensor:
    """Items (T, ..., D) -> (T, ..., D_out); 0 where no expert was reached. Runs the chosen pairs only."""
    pairs = sort_pairs(routing)
    y = bank.run_sorted(take_rows(x, pairs), pairs.counts)[: pairs.row.numel()]
    return combine_log_space(y, pairs.item, routing.weight[pairs.row], pairs.num_items)


def log_space_dense(x: Tensor, routing: Routing, bank: Bank) -> Tensor:
    """The same by running every expert on every item, without sorting."""
    if routing.mask is not None:  # a masked item may hold NaN, which no weight of 0 would take out
        x = torch.where(expand_like(routing.mask, x).bool(), x, torch.zeros_like(x))
    y = bank.run_all(x)  # (E, T, ..., D_out)
    experts, items = y.shape[:2]
    item = torch.arange(items, device=x.device).repeat(experts)
    return combine_log_space(y.flatten(0, 1), item, routing.dense().T.reshape(-1), items)


def combine_log_space(y: Tensor, item: Tensor, weight: Tensor, num_items: int) -> Tensor:
    """``log sum_i weight[i] exp(y[i])`` over the rows i of each item: (P, ..., D) -> (T, ..., D).

    Every term is taken relative to the item's largest, so that neither large outputs overflow nor small weights
    vanish. A weight below float32's normal range (1e-38: its gradient would overflow) counts as no row at all; an
    item without rows gets 0, as everywhere.

    Args:
        y: outputs (P, ..., D). item: (P,) int64, 0 to T - 1. weight: (P,), not negative. num_items: T.
    """
    shape = (num_items, *y.shape[1:])
    counts = weight >= torch.finfo(torch.float32).tiny
    log_weight = torch.where(counts, weight, 1).log()
    term = torch.where(expand_like(counts, y).bool(), y + expand_like(log_weight, y), -torch.inf)
    index = item.view(-1, *[1] * (y.ndim - 1)).expand_as(y)
    top = y.new_full(shape, -torch.inf).scatter_reduce(0, index, term.detach(), "amax")
    reached = top > -torch.inf
    top = torch.where(reached, top, 0)
    share = y.new_zeros(shape).index_add(0, item, torch.exp(term - top[item]))  # 1 or more wherever reached
    return torch.where(reached, top + torch.log(torch.where(reached, share, 1)), 0)
