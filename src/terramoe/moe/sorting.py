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
        num_items: T.
        fixed_k: k where every item has exactly k kept pairs, else None.
    """

    row: Tensor
    item: Tensor
    counts: list[int]
    num_items: int
    fixed_k: int | None


def sort_pairs(routing: Routing) -> SortedPairs:
    """Sort the kept pairs of a routing by expert (stable)."""
    fixed_k = routing.fixed_k if bool(routing.kept.all()) else None
    if fixed_k is not None:
        row, counts = stable_order(routing.expert, routing.num_experts)
    else:
        kept = routing.kept.nonzero().squeeze(1)
        order, counts = stable_order(routing.expert.index_select(0, kept), routing.num_experts)
        row = kept.index_select(0, order)
    item = row if fixed_k == 1 else routing.item.index_select(0, row)
    return SortedPairs(row, item, counts, routing.num_items, fixed_k)


def stable_order(expert: Tensor, num_experts: int) -> tuple[Tensor, list[int]]:
    """(P,) expert numbers -> the order that sorts them, equal numbers as they were, and how often each occurs."""
    small = expert.to(torch.uint8 if num_experts <= 256 else torch.int16)
    if small.device.type != "cpu":
        return small.sort(stable=True).indices, torch.bincount(expert, minlength=num_experts).tolist()
    # NumPy sorts small integers by radix, ten times as fast as torch on a CPU.
    numbers = small.numpy()
    counts = np.bincount(numbers, minlength=num_experts).tolist()
    return torch.from_numpy(np.argsort(numbers, kind="stable")), counts


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
    if pairs.fixed_k is None:
        rows = torch.argsort(pairs.item, stable=True)
        counts = torch.bincount(pairs.item, minlength=pairs.num_items)
        weights = None if weight is None else weight.index_select(0, rows)
        offsets = counts.cumsum(0) - counts
        return nn.functional.embedding_bag(rows, y, offsets=offsets, per_sample_weights=weights, mode="sum")
    places = torch.empty_like(pairs.row)  # the sorted place of each row of the record
    places.index_copy_(0, pairs.row, torch.arange(pairs.row.numel(), device=pairs.row.device))
    total = None
    for rows in places.view(pairs.fixed_k, -1):  # one rank at a time
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
