"""How sorted rows are cut into blocks that fit the cache, and when small experts are padded to run as one batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Costs(NamedTuple):
    """What a matrix product costs on a CPU, by its type.

    Attributes:
        call_flops: one product more costs about as long as this many floating-point operations: padding must stay
            below it.
        multiple: every expert's rows in a block are padded to a multiple of this.
        rows: most rows in a block. Fewer cost more calls; more no longer fit the cache beside their hidden activations.
    """

    call_flops: float
    multiple: int
    rows: int


# A block is at most this share of all rows, so that a small batch needs little memory, but no less than LEAST_ROWS.
LARGEST_SHARE = 1 / 8
LEAST_ROWS = 512

PLAIN = Costs(1e6, 1, 2048)
# A product of bfloat16 matrices is prepared anew for every shape that was not met lately, at the cost of the product
# itself: multiples of 32 rows leave few shapes.
BFLOAT16 = Costs(3e7, 32, 3072)


def costs_of(dtype: torch.dtype) -> Costs:
    """The costs of products of this type."""
    return BFLOAT16 if dtype == torch.bfloat16 else PLAIN


class Block(NamedTuple):
    """Rows ``start:stop`` of the layout: those of experts ``first_expert``, ``first_expert + 1`` ...

    ``ends`` are where each expert's rows end, counted from the start of the block. In a ``batched`` block all experts
    have equally many rows, so that one batched product serves them.
    """

    start: int
    stop: int
    first_expert: int
    ends: list[int]
    batched: bool

    @property
    def rows(self) -> int:
        return self.stop - self.start


class Layout(NamedTuple):
    """M rows in blocks; without padding they are the sorted pairs themselves.

    Attributes:
        blocks: the blocks, in order.
        size: M.
        place: (P,) row of each sorted pair, or None without padding.
    """

    blocks: list[Block]
    size: int
    place: Tensor | None

    def spread(self, values: Tensor, fill: int | None = None) -> Tensor:
        """One value per sorted pair (P,) -> one per row (M,); padding gets ``fill``, or the first pair's value."""
        if self.place is None:
            return values
        rows = values[:1].expand(self.size).clone() if fill is None else values.new_full((self.size,), fill)
        return rows.index_copy_(0, self.place, values)

    def collect(self, values: Tensor) -> Tensor:
        """One value per row (M,) -> one per sorted pair (P,)."""
        return values if self.place is None else values.index_select(0, self.place)


def lay_out(counts: Sequence[int], inner: int, flops: int, device: torch.device, costs: Costs) -> Layout:
    """Cut sorted pairs into blocks.

    Args:
        counts: pairs per expert.
        inner: rows inside an item.
        flops: floating-point operations of a row in one product; decides how much padding is worth a call less.
        device: where ``place`` shall lie.
        costs: of products of the rows' type.
    """
    multiple = costs.multiple // math.gcd(costs.multiple, max(inner, 1))  # in items
    most = min(costs.rows, max(int(sum(counts) * inner * LARGEST_SHARE), LEAST_ROWS))
    rows = max(most // max(inner, 1) // multiple * multiple, multiple)
    spare = costs.call_flops / max(flops * inner, 1)  # rows of padding per expert that cost no more than its own call
    rounded = [-(-count // multiple) * multiple for count in counts]
    blocks: list[Block] = []
    padded = list(rounded)
    group: list[int] = []
    start = 0

    def close(next_expert: int) -> None:
        nonlocal start
        if not sum(group):
            group.clear()
            return
        most, first = max(group), next_expert - len(group)
        batched = len(group) > 1 and most * len(group) - sum(group) <= spare * len(group)
        sizes = [most] * len(group) if batched else group
        padded[first:next_expert] = sizes
        ends = torch.tensor(sizes).cumsum(0).tolist()
        blocks.append(Block(start, start + ends[-1], first, ends, batched))
        start += ends[-1]
        group.clear()

    for expert, count in enumerate(rounded):
        if count > rows or sum(group) + count > rows:
            close(expert)
        if count <= rows:
            group.append(count)
            continue
        units, pieces = count // multiple, -(-count // rows)
        for piece in range(pieces):  # a large expert: blocks of nearly equal size
            size = (units + piece) // pieces * multiple
            blocks.append(Block(start, start + size, expert, [size], False))
            start += size
    close(len(counts))
    if start == sum(counts):
        return Layout(blocks, start, None)
    count, pad = torch.tensor(counts), torch.tensor(padded)
    shift = (pad.cumsum(0) - pad) - (count.cumsum(0) - count)
    place = torch.arange(sum(counts)) + shift.repeat_interleave(count)
    return Layout(blocks, start, place.to(device))
