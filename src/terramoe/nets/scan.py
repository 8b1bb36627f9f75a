"""Linear recurrences along time, in plain PyTorch: the heart of every state-space layer.

The published systems call a CUDA kernel here. A recurrence only needs one fused multiply-add per step, so a loop over
time that works on all sequences at once is fast on a CPU too, if long sequences are cut into chunks that run side by
side.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

_LONGEST_PLAIN_LOOP = 96  # steps; beyond this, chunks of about sqrt(L) steps need fewer kernel calls


def linear_recurrence(a: Tensor, b: Tensor) -> Tensor:
    """h[t] = a[t] * h[t - 1] + b[t] with h[-1] = 0, element by element.

    Args:
        a, b: (L, ...) of one shape, time first.

    Returns:
        h (L, ...). First derivatives only.
    """
    return _LinearRecurrence.apply(a, b)


class _LinearRecurrence(torch.autograd.Function):
    """The gradient of a recurrence is the recurrence run backwards, so nothing but ``a`` and ``h`` is stored."""

    @staticmethod
    def forward(ctx: FunctionCtx, a: Tensor, b: Tensor) -> Tensor:
        h = _scan(a, b)
        ctx.save_for_backward(a, h)
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_h: Tensor) -> tuple[Tensor, Tensor]:
        a, h = ctx.saved_tensors
        # g[t] = grad_h[t] + a[t + 1] * g[t + 1]
        a_next = torch.cat([a[1:], torch.zeros_like(a[:1])])
        grad_b = _scan(a_next.flip(0), grad_h.flip(0)).flip(0)
        h_before = torch.cat([torch.zeros_like(h[:1]), h[:-1]])
        return grad_b * h_before, grad_b


def _scan(a: Tensor, b: Tensor) -> Tensor:
    length = a.shape[0]
    if length <= _LONGEST_PLAIN_LOOP:
        return _loop(a.contiguous(), b.contiguous())
    steps = math.isqrt(length - 1) + 1
    chunks = -(-length // steps)
    missing = chunks * steps - length
    if missing:
        a = torch.cat([a, a.new_ones(missing, *a.shape[1:])])
        b = torch.cat([b, b.new_zeros(missing, *b.shape[1:])])
    # (steps, chunks, ...): every chunk starts from zero; then the state that enters a chunk decays through it.
    a = a.unflatten(0, (chunks, steps)).transpose(0, 1).contiguous()
    b = b.unflatten(0, (chunks, steps)).transpose(0, 1).contiguous()
    h = _loop(a, b)
    decay = a.cumprod(0)
    entering = torch.zeros_like(h[0])
    entering[1:] = _loop(decay[-1], h[-1])[:-1]
    h.addcmul_(decay, entering)
    return h.transpose(0, 1).flatten(0, 1)[:length]


def _loop(a: Tensor, b: Tensor) -> Tensor:
    h = torch.empty_like(b)
    if len(h):
        h[0] = b[0]
    for t in range(1, len(h)):
        torch.addcmul(b[t], a[t], h[t - 1], out=h[t])
    return h
