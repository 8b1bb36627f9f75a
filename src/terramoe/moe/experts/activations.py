"""Activations of feed-forward experts, with the in-place forms that the fused bank needs.

``pre`` is what the first matrix gives. A gated activation halves it: its first half passes the activation and then
multiplies the second half (GLU Variants Improve Transformer, 2020, arXiv 2002.05202).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from terramoe.errors import RoutingError

aten = torch.ops.aten


@dataclass(frozen=True)
class Activation:
    """One activation.

    Attributes:
        gated: whether ``pre`` has twice the hidden width.
        plain: pre -> hidden, differentiable.
        into: (pre, out) writes the hidden into ``out`` (which may be ``pre`` itself if not gated).
        gradient: (grad of hidden, pre, out) writes the gradient of ``pre`` into ``out`` (which may be the first
            argument if not gated).
    """

    gated: bool
    plain: Callable[[Tensor], Tensor]
    into: Callable[[Tensor, Tensor], Tensor]
    gradient: Callable[[Tensor, Tensor, Tensor], Tensor]


def _gated(plain: Callable[[Tensor], Tensor], into: Callable, gradient: Callable) -> Activation:
    def plain_gated(pre: Tensor) -> Tensor:
        gate, up = pre.chunk(2, dim=-1)
        return plain(gate) * up

    def into_gated(pre: Tensor, out: Tensor) -> Tensor:
        gate, up = pre.chunk(2, dim=-1)
        return into(gate, out).mul_(up)

    def gradient_gated(grad: Tensor, pre: Tensor, out: Tensor) -> Tensor:
        (gate, up), (to_gate, to_up) = pre.chunk(2, dim=-1), out.chunk(2, dim=-1)
        into(gate, to_up)
        to_up.mul_(grad)
        gradient(grad * up, gate, to_gate)
        return out

    return Activation(True, plain_gated, into_gated, gradient_gated)


_GELU = (
    F.gelu,
    lambda pre, out: aten.gelu.out(pre, out=out),
    lambda grad, pre, out: aten.gelu_backward.grad_input(grad, pre, grad_input=out),
)
_SILU = (
    F.silu,
    lambda pre, out: aten.silu.out(pre, out=out),
    lambda grad, pre, out: aten.silu_backward.grad_input(grad, pre, grad_input=out),
)
_RELU = (
    F.relu,
    lambda pre, out: torch.clamp_min(pre, 0, out=out),
    lambda grad, pre, out: aten.threshold_backward.grad_input(grad, pre, 0, grad_input=out),
)
_TANH = (
    torch.tanh,
    lambda pre, out: torch.tanh(pre, out=out),
    lambda grad, pre, out: aten.tanh_backward.grad_input(grad, torch.tanh(pre), grad_input=out),
)

ACTIVATIONS: dict[str, Activation] = {
    "gelu": Activation(False, *_GELU),
    "silu": Activation(False, *_SILU),
    "relu": Activation(False, *_RELU),
    "tanh": Activation(False, *_TANH),
    "geglu": _gated(*_GELU),
    "swiglu": _gated(*_SILU),
    "reglu": _gated(*_RELU),
}


def get_activation(name: str) -> Activation:
    """The activation of that name; RoutingError lists the names when there is none."""
    if name not in ACTIVATIONS:
        raise RoutingError(f"no activation '{name}'", where="StackedFFN", fix=f"use one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]
