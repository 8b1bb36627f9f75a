"""The fast path of the feed-forward bank on a CPU: gather, both matrices and combine in one autograd node.

Rows stand sorted by expert and are worked on in blocks whose hidden activations stay in the cache. Autograd would keep
the gathered rows, two hidden tensors and the outputs; here only the input of the activation and the experts' outputs
are kept, the rest is gathered or computed again, which costs less than writing fresh memory.

Shapes: T items of R inner rows, M rows of the layout, E experts, D in, H hidden (2H before a gated activation), O out.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from terramoe.moe.experts.activations import Activation
from terramoe.moe.experts.layout import Block, costs_of, lay_out
from terramoe.moe.products import linear, outer
from terramoe.moe.sorting import SortedPairs


class Weights(NamedTuple):
    """Stacked parameters: w_in (E, D, H), b_in (E, H) or None, w_out (E, H, O), b_out (E, O) or None."""

    w_in: Tensor
    b_in: Tensor | None
    w_out: Tensor
    b_out: Tensor | None


def fused_ffn(x: Tensor, weight: Tensor, weights: Weights, pairs: SortedPairs, activation: Activation) -> Tensor:
    """Items (T, ..., D) and the record's weights (N,) -> (T, ..., O). First derivatives only."""
    weight = weight.to(x.dtype)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, *weights)):
        return _FusedFFN.apply(x, weight, *weights, pairs, activation)
    return _Run(x, weight, weights, pairs, activation, keep=False).forward()


class _FusedFFN(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, w_in, b_in, w_out, b_out, pairs, activation):
        run = _Run(x, weight, Weights(w_in, b_in, w_out, b_out), pairs, activation, keep=True)
        y = run.forward()
        ctx.save_for_backward(x, weight, w_in, b_in, w_out, b_out, *run.pre, *run.rows)
        ctx.pairs, ctx.activation = pairs, activation
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight, w_in, b_in, w_out, b_out, *kept = ctx.saved_tensors
        run = _Run(x, weight, Weights(w_in, b_in, w_out, b_out), ctx.pairs, ctx.activation, keep=True)
        run.pre, run.rows = kept[: len(kept) // 2], kept[len(kept) // 2 :]
        return (*run.backward(grad, ctx.needs_input_grad[:6]), None, None)


class _Run:
    """One pass over the blocks: scratch memory, and the loops that use it."""

    def __init__(
        self, x: Tensor, weight: Tensor, weights: Weights, pairs: SortedPairs, activation: Activation, *, keep: bool
    ) -> None:
        self.x, self.weights, self.pairs, self.activation, self.keep = x, weights, pairs, activation, keep
        self.inner, self.items = x.shape[1:-1].numel(), x.flatten(1)
        self.width, self.hidden_in = weights.w_in.shape[1:]
        self.hidden, self.width_out = weights.w_out.shape[1:]
        self.layout = lay_out(
            pairs.counts,
            self.inner,
            flops=2 * self.width * self.hidden_in,
            device=x.device,
            costs=costs_of(x),
        )
        self.item = self.layout.spread(pairs.item)
        self.num_weights, self.weight = weight.shape[0], self.layout.spread(weight.index_select(0, pairs.row), fill=0)
        self.most = max((block.rows for block in self.layout.blocks), default=0) * self.inner
        self.pre: list[Tensor] = []
        self.rows: list[Tensor] = []

    def forward(self) -> Tensor:
        """(T, ..., O). Leaves each block's ``pre`` (n, H), the activation's input, and ``rows`` (n, O), if kept."""
        y = self.x.new_zeros(self.items.shape[0], self.inner * self.width_out)
        gathered = self._scratch(self.width)
        hidden = self._scratch(self.hidden) if self.keep or self.activation.gated else None
        for block in self.layout.blocks:
            self._run_block(y, block, gathered, hidden)
        return y.view(*self.x.shape[:-1], self.width_out)

    def _run_block(self, y: Tensor, block: Block, gathered: Tensor, hidden: Tensor | None) -> None:
        n, w = block.rows * self.inner, self.weights
        pre = self._multiply(block, self._gather(self.items, block, gathered), w.w_in, w.b_in)
        # Without a backward pass the activation may overwrite its input, and the weights the outputs.
        act = self.activation.into(pre, pre if hidden is None else hidden[:n])
        rows = self._multiply(block, act, w.w_out, w.b_out)
        by_item, weight = rows.view(block.rows, -1), self.weight[block.start : block.stop, None]
        if self.keep:
            self.pre.append(pre)
            self.rows.append(rows)
        self._add(y, block, by_item * weight if self.keep else by_item.mul_(weight))

    def backward(self, grad: Tensor, needs: Sequence[bool]) -> tuple[Tensor | None, ...]:
        """Gradients of x, the record's weights and the four parameters, None where ``needs`` says so."""
        need_x, need_weight, *need_parameters = needs
        totals = Weights(
            *(torch.empty_like(w) if n else None for w, n in zip(self.weights, need_parameters, strict=True))
        )
        for total, expert in itertools.product(totals, self.layout.absent):
            if total is not None:
                total[expert].zero_()
        grad_x = torch.zeros_like(self.items) if need_x else None
        dots = self.weight.new_empty(self.layout.size) if need_weight else None
        gathered, grad_out, grad = self._scratch(self.width), self._scratch(self.width_out), grad.flatten(1)
        act = self._scratch(self.hidden)
        grad_pre = self._scratch(self.hidden_in) if self.activation.gated else None
        for block, hb, rows in zip(self.layout.blocks, self.pre, self.rows, strict=True):
            n = block.rows * self.inner
            gb = self._gather(grad, block, grad_out)
            by_item = gb.view(block.rows, -1)
            if need_weight:
                torch.sum(by_item * rows.view_as(by_item), 1, out=dots[block.start : block.stop])
            by_item.mul_(self.weight[block.start : block.stop, None])
            if totals.w_out is not None:
                self._accumulate(block, self.activation.into(hb, act[:n]), gb, totals.w_out)
            self._accumulate_bias(block, gb, totals.b_out)
            if not (need_x or totals.w_in is not None or totals.b_in is not None):
                continue
            db = self._multiply(block, gb, self.weights.w_out.mT, None)
            db = self.activation.gradient(db, hb, db if grad_pre is None else grad_pre[:n])
            if totals.w_in is not None:
                self._accumulate(block, self._gather(self.items, block, gathered), db, totals.w_in)
            self._accumulate_bias(block, db, totals.b_in)
            if need_x:
                self._add(grad_x, block, self._multiply(block, db, self.weights.w_in.mT, None).view(block.rows, -1))
        grad_weight = None
        if need_weight:
            grad_weight = dots.new_zeros(self.num_weights)
            grad_weight.index_copy_(0, self.pairs.row, self.layout.collect(dots))
        return (None if grad_x is None else grad_x.view(self.x.shape), grad_weight, *totals)

    def _scratch(self, width: int) -> Tensor:
        return self.x.new_empty(self.most, width)

    def _gather(self, source: Tensor, block: Block, scratch: Tensor) -> Tensor:
        """Rows (T, R*W) of the block's items -> (rows*R, W), in scratch memory."""
        target = scratch[: block.rows * self.inner]
        by_item = target.view(block.rows, source.shape[1])
        torch.index_select(source, 0, self.item[block.start : block.stop], out=by_item)
        return target

    def _add(self, total: Tensor, block: Block, rows: Tensor) -> None:
        """total (T, F) += rows (block, F) at the block's items; always in the same order."""
        total.index_add_(0, self.item[block.start : block.stop], rows)

    def _multiply(self, block: Block, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        """x @ w[e] (+ b[e]) for the rows of each expert e of the block."""
        first = block.first_expert
        if len(block.ends) == 1:
            return linear(x, w[first], None if b is None else b[first])
        if block.batched:
            x, w = x.view(len(block.ends), -1, x.shape[-1]), w[block.experts]
            y = torch.bmm(x, w) if b is None else torch.baddbmm(b[block.experts].unsqueeze(1), x, w)
            return y.flatten(0, 1)
        out = x.new_empty(x.shape[0], w.shape[-1])
        for expert, rows in self._experts(block):
            linear(x[rows], w[expert], None if b is None else b[expert], out=out[rows])
        return out

    def _accumulate(self, block: Block, x: Tensor, grad: Tensor, total: Tensor) -> None:
        """total[e] = x.T @ grad over the rows of each expert e of the block, added up over an expert's blocks."""
        if block.batched:
            x, grad = (t.view(len(block.ends), -1, t.shape[-1]) for t in (x, grad))
            torch.bmm(x.mT, grad, out=total[block.experts])
            return
        for expert, rows in self._experts(block):
            outer(total[expert], x[rows], grad[rows], add=block.further)

    def _accumulate_bias(self, block: Block, grad: Tensor, total: Tensor | None) -> None:
        if total is None:
            return
        if block.batched:
            torch.sum(grad.view(len(block.ends), -1, grad.shape[-1]), 1, out=total[block.experts])
            return
        for expert, rows in self._experts(block):
            if block.further:
                total[expert].add_(grad[rows].sum(0))
            else:
                torch.sum(grad[rows], 0, out=total[expert])

    def _experts(self, block: Block) -> Iterator[tuple[int, slice]]:
        """The experts that have rows in the block, and where those stand."""
        start = 0
        for expert, end in enumerate(block.ends, block.first_expert):
            if end > start:
                yield expert, slice(start * self.inner, end * self.inner)
            start = end
