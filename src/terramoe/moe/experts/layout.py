"""How sorted rows are cut into blocks that fit the cache, and when small experts are padded to run as one batch."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from terramoe.moe.products import by_onednn


class Costs(NamedTuple):
    """What a matrix product costs on a CPU, by its type and kernel.

    Attributes:
        call_flops: one product more costs about as long as this many floating-point operations.
        batched: how many times longer an operation takes in a batched product; with ``call_flops`` it says when
            padding small experts to one size pays.
        multiple: every expert's rows in a block are padded to a multiple of this, or of a 32nd of themselves; 1 pads
            nothing.
        least_flops: work for which a block is worth its calls.
        rows: rows beyond which a block no longer fits the cache beside its hidden activations.
    """

    call_flops: float
    batched: float
    multiple: int
    least_flops: float
    rows: int


MOST_PADDED = 2  # times the rows, padded to one size: that costs memory, and work outside products too
LEAST_ROWS = 1280  # for ``least_flops``, so that a block stays small in memory too

PLAIN = Costs(1e6, 1, 1, 4e7, 2048)
# oneDNN prepares a product anew for every shape that was not met lately, at the cost of the product itself, and keeps
# 1024 of them: padding leaves about 100 numbers of rows. It has a fast batched product of bfloat16; the one of float32
# goes through MKL.
ONEDNN_FLOAT32 = Costs(1.6e7, 2.5, 16, 4e7, 1024)
ONEDNN_BFLOAT16 = Costs(3e7, 1, 16, 7e8, 3072)


def costs_of(x: Tensor) -> Costs:
    """The costs of products of such rows."""
    if not by_onednn(x):
        return PLAIN
    return ONEDNN_BFLOAT16 if x.dtype == torch.bfloat16 else ONEDNN_FLOAT32


class Block(NamedTuple):
    """Rows ``start:stop`` of the layout: those of experts ``first_expert``, ``first_expert + 1`` ...

    ``ends`` are where each expert's rows end, counted from the start of the block. In a ``batched`` block all experts
    have equally many rows, so that one batched product serves them. A ``further`` block goes on with the expert of the
    block before it.
    """

    start: int
    stop: int
    first_expert: int
    ends: list[int]
    batched: bool = False
    further: bool = False

    @property
    def rows(self) -> int:
        return self.stop - self.start

    @property
    def experts(self) -> slice:
        return slice(self.first_expert, self.first_expert + len(self.ends))


class Layout(NamedTuple):
    """M rows in blocks; without padding they are the sorted pairs themselves.

    Attributes:
        blocks: the blocks, in order.
        size: M.
        place: (P,) row of each sorted pair, or None without padding.
        absent: experts without rows.
    """

    blocks: list[Block]
    size: int
    place: Tensor | None
    absent: list[int]

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
    # At most an eighth of all rows, so that a small batch needs little memory, unless a block then does too little.
    most = max(sum(counts) * inner // 8, min(int(costs.least_flops / flops), LEAST_ROWS))
    rows = max(min(most, costs.rows) // max(inner, 1), 1)  # like everything below, in items
    call = costs.call_flops / max(flops * inner, 1)  # items that could be worked on in the time of a call
    rounded = [round_up(count, inner, costs.multiple) for count in counts]
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
        same = most * len(group)  # items, if all of the group have the size of the largest
        pays = costs.batched * same <= sum(group) + call * len(group) and same <= MOST_PADDED * sum(group)
        batched = len(group) > 1 and pays
        sizes = [most] * len(group) if batched else group
        padded[first:next_expert] = sizes
        ends = list(itertools.accumulate(sizes))
        blocks.append(Block(start, start + ends[-1], first, ends, batched))
        start += ends[-1]
        group.clear()

    for expert, count in enumerate(rounded):
        pieces = max(1, round(count / rows))
        if pieces > 1 or sum(group) + count > rows:
            close(expert)
        if pieces == 1:
            group.append(count)
            continue
        size = round_up(-(-count // pieces), inner, costs.multiple)  # a large expert: blocks of nearly equal size
        padded[expert] = 0
        while padded[expert] < counts[expert]:
            size = min(size, round_up(counts[expert] - padded[expert], inner, costs.multiple))
            blocks.append(Block(start, start + size, expert, [size], further=padded[expert] > 0))
            padded[expert] += size
            start += size
    close(len(counts))
    absent = [expert for expert, rows in enumerate(padded) if not rows]
    if start == sum(counts):
        return Layout(blocks, start, None, absent)
    # NumPy, because each of these is a call on few numbers, which costs torch several times as much.
    shift = np.cumsum([0, *padded[:-1]]) - np.cumsum([0, *counts[:-1]])
    place = np.arange(sum(counts)) + np.repeat(shift, counts)
    return Layout(blocks, start, torch.from_numpy(place).to(device), absent)


def round_up(items: int, inner: int, multiple: int) -> int:
    """At least so many items of ``inner`` rows, so that few numbers of rows occur; see ``Costs.multiple``."""
    if multiple == 1 or not items:
        return items
    step = multiple * max(1, items * inner // 32 // multiple)
    step = max(1, (1 << step.bit_length() - 1) // max(inner, 1))
    return -(-items // step) * step
