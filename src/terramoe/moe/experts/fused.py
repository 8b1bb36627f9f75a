"""The fast path of the feed-forward bank on a CPU: gather, both matrices and combine in one autograd node.

Rows stand sorted by expert and are worked on in blocks whose hidden activations stay in the cache. Autograd would keep
the gathered rows, two hidden tensors and the outputs; here only the input of the activation and the experts' outputs
are kept, the rest is gathered or computed again, which costs less than writing fresh memory.

Shapes: T items of R inner rows, M rows of the layout, E experts, D in, H hidden (2H before a gated activation), O out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from terramoe.moe.experts.activations import Activation
from terramoe.moe.experts.layout import Block, costs_of, lay_out
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
        ctx.save_for_backward(x, weight, w_in, b_in, w_out, b_out, run.pre, run.rows)
        ctx.pairs, ctx.activation = pairs, activation
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight, *weights, pre, rows = ctx.saved_tensors
        run = _Run(x, weight, Weights(*weights), ctx.pairs, ctx.activation, keep=True)
        run.pre, run.rows = pre, rows
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
            costs=costs_of(x.dtype),
        )
        self.item = self.layout.spread(pairs.item)
        self.num_weights, self.weight = weight.shape[0], self.layout.spread(weight.index_select(0, pairs.row), fill=0)
        self.most = max((block.rows for block in self.layout.blocks), default=0) * self.inner

    def forward(self) -> Tensor:
        """(T, ..., O). Leaves ``pre`` (M*R, H), the activation's input, and ``rows`` (M*R, O), if they are kept."""
        y = self.x.new_zeros(self.items.shape[0], self.inner * self.width_out)
        kept = self.layout.size * self.inner if self.keep else self.most
        self.pre, self.rows = self.x.new_empty(kept, self.hidden_in), self.x.new_empty(kept, self.width_out)
        gathered = self._scratch(self.width)
        # Without a backward pass the activation may overwrite its input, and the weights the outputs.
        act = self._scratch(self.hidden) if self.keep or self.activation.gated else self.pre
        weighted = self._scratch(self.width_out) if self.keep else self.rows
        for block in self.layout.blocks:
            n = block.rows * self.inner
            part = slice(block.start * self.inner, block.stop * self.inner) if self.keep else slice(n)
            hb, ob = self.pre[part], self.rows[part]
            self._multiply(block, self._gather(self.items, block, gathered), self.weights.w_in, self.weights.b_in, hb)
            self._multiply(block, self.activation.into(hb, act[:n]), self.weights.w_out, self.weights.b_out, ob)
            by_item, weight = ob.view(block.rows, -1), self.weight[block.start : block.stop, None]
            self._add(y, block, torch.mul(by_item, weight, out=weighted[:n].view_as(by_item)))
        return y.view(*self.x.shape[:-1], self.width_out)

    def backward(self, grad: Tensor, needs: Sequence[bool]) -> tuple[Tensor | None, ...]:
        """Gradients of x, the record's weights and the four parameters, None where ``needs`` says so."""
        need_x, need_weight, *need_parameters = needs
        totals = Weights(
            *(torch.zeros_like(w) if n else None for w, n in zip(self.weights, need_parameters, strict=True))
        )
        grad_x = torch.zeros_like(self.items) if need_x else None
        dots = self.weight.new_empty(self.layout.size) if need_weight else None
        gathered, grad_out, grad = self._scratch(self.width), self._scratch(self.width_out), grad.flatten(1)
        act, grad_act = self._scratch(self.hidden), self._scratch(self.hidden)
        grad_pre = self._scratch(self.hidden_in) if self.activation.gated else grad_act
        for block in self.layout.blocks:
            n = block.rows * self.inner
            kept = slice(block.start * self.inner, block.stop * self.inner)
            gb, hb, db = self._gather(grad, block, grad_out), self.pre[kept], grad_act[:n]
            by_item = gb.view(block.rows, -1)
            if need_weight:
                torch.sum(by_item * self.rows[kept].view_as(by_item), 1, out=dots[block.start : block.stop])
            by_item.mul_(self.weight[block.start : block.stop, None])
            if totals.w_out is not None:
                self._accumulate(block, self.activation.into(hb, act[:n]), gb, totals.w_out)
            self._accumulate_bias(block, gb, totals.b_out)
            if not (need_x or totals.w_in is not None or totals.b_in is not None):
                continue
            self._multiply(block, gb, self.weights.w_out.mT, None, db)
            db = self.activation.gradient(db, hb, grad_pre[:n])
            if totals.w_in is not None:
                self._accumulate(block, self._gather(self.items, block, gathered), db, totals.w_in)
            self._accumulate_bias(block, db, totals.b_in)
            if need_x:
                self._multiply(block, db, self.weights.w_in.mT, None, gathered[:n])
                self._add(grad_x, block, gathered[:n].view(block.rows, -1))
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

    def _multiply(self, block: Block, x: Tensor, w: Tensor, b: Tensor | None, out: Tensor) -> None:
        """out = x @ w[e] (+ b[e]) for the rows of each expert e of the block."""
        if block.batched:
            experts = slice(block.first_expert, block.first_expert + len(block.ends))
            x, out = (t.view(len(block.ends), -1, t.shape[-1]) for t in (x, out))
            if b is None:
                torch.bmm(x, w[experts], out=out)
            else:
                torch.baddbmm(b[experts].unsqueeze(1), x, w[experts], out=out)
            return
        start = 0
        for expert, end in enumerate(block.ends, block.first_expert):
            end *= self.inner
            if end > start:
                if b is None:
                    torch.mm(x[start:end], w[expert], out=out[start:end])
                else:
                    torch.addmm(b[expert], x[start:end], w[expert], out=out[start:end])
            start = end

    def _accumulate(self, block: Block, x: Tensor, grad: Tensor, total: Tensor) -> None:
        """total[e] += x.T @ grad over the rows of each expert e of the block."""
        if block.batched:
            experts = slice(block.first_expert, block.first_expert + len(block.ends))
            x, grad = (t.view(len(block.ends), -1, t.shape[-1]) for t in (x, grad))
            total[experts].baddbmm_(x.mT, grad)
            return
        start = 0
        for expert, end in enumerate(block.ends, block.first_expert):
            end *= self.inner
            if end > start:
                total[expert].addmm_(x[start:end].T, grad[start:end])
            start = end

    def _accumulate_bias(self, block: Block, grad: Tensor, total: Tensor | None) -> None:
        if total is None:
            return
        if block.batched:
            experts = slice(block.first_expert, block.first_expert + len(block.ends))
            total[experts].add_(grad.view(len(block.ends), -1, grad.shape[-1]).sum(1))
            return
        start = 0
        for expert, end in enumerate(block.ends, block.first_expert):
            end *= self.inner
            if end > start:
                total[expert].add_(grad[start:end].sum(0))
            start = end
