"""Matrix products by the fastest kernel that PyTorch has for them on a CPU.

``torch.mm`` takes MKL for float32, which leaves half of the speed on processors of other makers than its own. oneDNN,
which PyTorch ships too, does not, and adds an offset on the way; it is called as ``torch.compile`` calls it.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

PART = 4096  # rows converted at once


def by_onednn(x: Tensor) -> bool:
    """Whether products of such rows go through oneDNN: float32 and bfloat16 on a CPU, unless a graph is traced."""
    if x.device.type != "cpu" or torch.compiler.is_compiling() or not torch.backends.mkldnn.enabled:
        return False
    return _runs_in_onednn(x.dtype)


def linear(x: Tensor, w: Tensor, b: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """x (n, D), w (D, H), b (H,) or None -> x @ w + b, (n, H), written into ``out`` if that is given. No gradient."""
    # Without an offset torch.mm comes to the same for bfloat16, and has less to do before it.
    if by_onednn(x) and not (x.dtype == torch.bfloat16 and b is None):
        y = _onednn(x, w, b)
        return y if out is None else out.copy_(y)
    return torch.mm(x, w, out=out) if b is None else torch.addmm(b, x, w, out=out)


def outer(total: Tensor, x: Tensor, grad: Tensor, *, add: bool) -> None:
    """total (D, H) = x (n, D) transposed @ grad (n, H), or += that. No gradient."""
    if by_onednn(x) and x.dtype == torch.float32:
        # The kernel copies its first argument: let that be the narrow one.
        y = _onednn(x.T, grad, None) if x.shape[1] <= grad.shape[1] else _onednn(grad.T, x, None).T
        total.add_(y) if add else total.copy_(y)
    elif add:
        total.addmm_(x.T, grad)
    else:
        torch.mm(x.T, grad, out=total)


def few_by_many(few: Tensor, many: Tensor) -> Tensor:
    """few (E, D), many (T, D) of the same or a lower precision -> few @ many.T, (E, T). Differentiable."""
    if not by_onednn(few) or torch.is_autocast_enabled("cpu"):  # autocast looks at torch's own products
        return few @ many.to(few.dtype).T
    return _FewByMany.apply(few, many) if _needs_gradient(few, many) else _few_by_many(few, many)


def many_by_few(many: Tensor, few: Tensor) -> Tensor:
    """many (T, D), few (D, E) -> many @ few, (T, E). Differentiable."""
    if not by_onednn(many) or torch.is_autocast_enabled("cpu"):
        return many @ few
    return _ManyByFew.apply(many, few) if _needs_gradient(many, few) else linear(many, few)


class _FewByMany(torch.autograd.Function):
    @staticmethod
    def forward(ctx, few: Tensor, many: Tensor) -> Tensor:
        ctx.save_for_backward(few, many)
        return _few_by_many(few, many)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        few, many = ctx.saved_tensors
        need_few, need_many = ctx.needs_input_grad
        grad_few = sum(grad[:, part] @ many[part].to(few.dtype) for part in _parts(few, many)) if need_few else None
        return grad_few, many_by_few(grad.T, few).to(many.dtype) if need_many else None


def _few_by_many(few: Tensor, many: Tensor) -> Tensor:
    parts = _parts(few, many)
    if len(parts) == 1:
        return linear(few, many.to(few.dtype).T)
    out = few.new_empty(few.shape[0], many.shape[0])
    for part in parts:
        out[:, part] = linear(few, many[part].to(few.dtype).T)
    return out


def _parts(few: Tensor, many: Tensor) -> list[slice]:
    """Where to cut ``many``: nowhere, or so that its copies in another precision stay small."""
    if few.dtype == many.dtype or many.shape[0] <= PART:
        return [slice(None)]
    return [slice(start, start + PART) for start in range(0, many.shape[0], PART)]


class _ManyByFew(torch.autograd.Function):
    @staticmethod
    def forward(ctx, many: Tensor, few: Tensor) -> Tensor:
        ctx.save_for_backward(many, few)
        return linear(many, few)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        many, few = ctx.saved_tensors
        need_many, need_few = ctx.needs_input_grad
        return many_by_few(grad, few.T) if need_many else None, many.T @ grad if need_few else None


@functools.cache
def _runs_in_onednn(dtype: torch.dtype) -> bool:
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _needs_gradient(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def _onednn(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, w.mT, b, "none", [], "none")
