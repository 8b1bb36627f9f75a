"""Sorting pairs by expert, and moving rows there and back with fast gradients.

N rows of the routing record; P <= N of them are kept and stand sorted by expert; T items.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from terramoe.moe.routing import Routing


class SortedPairs(NamedTuple):
    """The kept pairs of a routing, sorted by expert and inside an expert as in the record.

    Attributes:
        row: (P,) row of the record at each sorted place.
        item: (P,) its item.
        counts: E integers, pairs per expert.
        place: (k, T) sorted place of each item's choice where every item has exactly k kept pairs, else None.
        num_items: T.
    """

    row: Tensor
    item: Tensor
    counts: list[int]
    place: Tensor | None
    num_items: int


def sort_pairs(routing: Routing) -> SortedPairs:
    """Sort the kept pairs of a routing by expert (stable)."""
    expert, every = routing.expert, routing.fixed_k is not None and bool(routing.kept.all())
    kept = None if every else routing.kept.nonzero().squeeze(1)
    if kept is not None:
        expert = expert[kept]
    counts = torch.bincount(expert, minlength=routing.num_experts).tolist()
    row = stable_order(expert, routing.num_experts)
    place = None
    if kept is not None:
        row = kept[row]
    else:
        places = torch.arange(row.numel(), device=row.device)
        place = torch.empty_like(row).scatter_(0, row, places).view(routing.fixed_k, -1)
    item = row if routing.fixed_k == 1 else routing.item[row]
    return SortedPairs(row, item, counts, place, routing.num_items)


def stable_order(expert: Tensor, num_experts: int) -> Tensor:
    """(P,) expert numbers -> the order that sorts them; equal numbers stay as they were."""
    small = expert.to(torch.uint8 if num_experts <= 256 else torch.int16)
    if small.device.type != "cpu":
        return small.sort(stable=True).indices
    # NumPy sorts small integers by radix, ten times as fast as torch on a CPU.
    return torch.from_numpy(np.argsort(small.numpy(), kind="stable"))


def take_rows(x: Tensor, pairs: SortedPairs) -> Tensor:
    """Items (T, ..., D) -> their copies in sorted order (P, ..., D). Differentiable."""
    return _TakeRows.apply(x, pairs)


def combine_rows(y: Tensor, weight: Tensor, pairs: SortedPairs) -> Tensor:
    """Sorted rows (P, ..., D) and the record's weights (N,) -> (T, ..., D), weighted sums. Differentiable."""
    return _CombineRows.apply(y, weight, pairs)


def sum_rows(y: Tensor, weight: Tensor | None, pairs: SortedPairs) -> Tensor:
    """Sorted rows (P, F) with weights (P,) or None -> (T, F): the sum of each item's rows. No gradient.

    Rows are gathered item by item: unlike ``index_add`` this writes each result once.
    """
    if pairs.place is None:
        rows = torch.argsort(pairs.item, stable=True)
        counts = torch.bincount(pairs.item, minlength=pairs.num_items)
        weights = None if weight is None else weight.index_select(0, rows)
        offsets = counts.cumsum(0) - counts
        return nn.functional.embedding_bag(rows, y, offsets=offsets, per_sample_weights=weights, mode="sum")
    total = None
    for rows in pairs.place:  # one rank at a time
        part = y.index_select(0, rows)
        if weight is not None:
            scale = weight.index_select(0, rows)[:, None]
            total = part.mul_(scale) if total is None else total.addcmul_(part, scale)
        else:
            total = part if total is None else total.add_(part)
    return total


class _TakeRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, pairs: SortedPairs) -> Tensor:
        ctx.pairs, ctx.shape = pairs, x.shape
        return x.index_select(0, pairs.item)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return sum_rows(_flat(grad), None, ctx.pairs).reshape(ctx.shape), None


class _CombineRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y: Tensor, weight: Tensor, pairs: SortedPairs) -> Tensor:
        sorted_weight = weight.index_select(0, pairs.row).to(y.dtype)
        ctx.pairs, ctx.num_rows, ctx.weight_dtype = pairs, weight.shape[0], weight.dtype
        ctx.save_for_backward(y if weight.requires_grad else y[:0], sorted_weight)
        return sum_rows(_flat(y), sorted_weight, pairs).reshape(pairs.num_items, *y.shape[1:])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        y, weight = ctx.saved_tensors
        grad_rows = _flat(grad).index_select(0, ctx.pairs.item)
        grad_weight = None
        if ctx.needs_input_grad[1]:
            dots = (grad_rows * _flat(y)).sum(-1, dtype=ctx.weight_dtype)
            grad_weight = dots.new_zeros(ctx.num_rows).index_copy_(0, ctx.pairs.row, dots)
        grad_y = grad_rows.mul_(weight[:, None]).reshape(-1, *grad.shape[1:]) if ctx.needs_input_grad[0] else None
        return grad_y, grad_weight, None


def _flat(x: Tensor) -> Tensor:
    """(n, ..., D) -> (n, F)."""
    return x.flatten(1) if x.ndim > 1 else x[:, None]
