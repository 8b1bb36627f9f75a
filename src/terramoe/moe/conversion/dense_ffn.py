"""A dense two-layer feed-forward network (FFN) as the matrices of one expert, and experts made of its neurons.

A neuron is one hidden unit: its column of the first matrix (two of them where the activation is gated) and its row of
the second. Shapes: D in, H neurons, O out, E experts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from terramoe.errors import RoutingError
from terramoe.moe.experts import StackedFFN
from terramoe.moe.experts.activations import get_activation
from terramoe.moe.experts.fused import Weights
from terramoe.moe.layer import MoELayer
from terramoe.moe.organisation import SharedPlusRouted

Read = Callable[[nn.Parameter], Tensor]

_GATED = {"gelu": "geglu", "silu": "swiglu", "relu": "reglu"}


class DenseFFN(NamedTuple):
    """``act(x w_in + b_in) w_out + b_out``: w_in (D, H), b_in (H,), w_out (H, O), b_out (O,); w_in and b_in have 2H
    columns, gates first, where the activation of that name is gated, and offsets may be None."""

    weights: Weights
    activation: str

    @property
    def neurons(self) -> int:
        """H."""
        return self.weights.w_out.shape[0]

    def hidden(self, x: Tensor) -> Tensor:
        """What the second matrix gets: (..., D) -> (..., H)."""
        pre = x @ self.weights.w_in
        return get_activation(self.activation).plain(pre if self.weights.b_in is None else pre + self.weights.b_in)

    def by_neuron(self, of_columns: Tensor) -> Tensor:
        """A tensor whose last dimension is the columns of w_in -> (..., 1 or 2, H), the columns of each neuron."""
        return of_columns.unflatten(-1, (-1, self.neurons))


def read_ffn(module: nn.Module, read: Read | None = None) -> DenseFFN:
    """The matrices of a dense FFN.

    Args:
        module: holds two linear layers and an activation between them (``nn.Sequential`` or a class of its own), or
            three, registered in the order gate, up, down; or is or holds a ``StackedFFN`` of one expert. The activation
            is GELU, SiLU or ReLU.
        read: parameter -> the tensor of its shape that stands for it (its gradient, say). None: its values without
            gradient, and the module is tried on some rows, since a class may compute something else with these parts.

    Raises:
        RoutingError: other parts, dropout above 0, or another function.
    """
    take = read or (lambda parameter: parameter.detach())
    leaves = [part for part in module.modules() if not any(True for _ in part.children()) and not _does_nothing(part)]
    if len(leaves) == 1 and type(leaves[0]) is StackedFFN and leaves[0].num_experts == 1:
        weights = Weights(*(None if p is None else take(p)[0] for p in leaves[0].weights()))
        dense = DenseFFN(weights, leaves[0].activation_name)
    else:
        dense = _from_linear(module, leaves, take)
    if read is None and not isinstance(module, StackedFFN):
        _try(module, dense)
    return dense


def stack_ffn(weights: Weights, activation: str) -> StackedFFN:
    """A bank with copies of these parameters (E, ...); unlike that of a new bank, an offset alone may be None."""
    (experts, dim, _), (hidden, dim_out) = weights.w_in.shape, weights.w_out.shape[1:]
    with torch.device("meta"):  # neither memory nor random numbers for what is replaced at once
        bank = StackedFFN(experts, dim, hidden, dim_out, activation)
    for name, value in zip(("w_in_EDH", "b_in_EH", "w_out_EHD", "b_out_ED"), weights, strict=True):
        copied = None if value is None else value.detach().clone(memory_format=torch.contiguous_format)
        setattr(bank, name, None if copied is None else nn.Parameter(copied))
    return bank


def slice_experts(dense: DenseFFN, neurons: Tensor) -> StackedFFN:
    """Experts that are slices of the FFN: expert e has the neurons ``neurons[e]``, (E, n) ids, in this order.

    They have no output offset, which belongs to all of them once (``with_offset``): so experts that have every neuron
    once between them sum to the dense FFN.
    """
    w = dense.weights
    neurons = neurons.to(w.w_in.device)
    columns = dense.by_neuron(w.w_in)[..., neurons].movedim(2, 0)  # (E, D, 1 or 2, n)
    offsets = None if w.b_in is None else dense.by_neuron(w.b_in)[..., neurons].movedim(1, 0).flatten(-2)
    return stack_ffn(Weights(columns.flatten(-2), offsets, w.w_out[neurons], None), dense.activation)


class Offset(nn.Module):
    """The output offset of an FFN, the same for every item."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.values = nn.Parameter(values.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., O)."""
        return self.values.expand(*x.shape[:-1], -1)


def with_offset(layer: MoELayer, values: Tensor | None) -> MoELayer | SharedPlusRouted:
    """``layer(x) + values``, whichever experts run and with which weights; the layer itself for None."""
    return layer if values is None else SharedPlusRouted(Offset(values), layer)


def _does_nothing(part: nn.Module) -> bool:
    return isinstance(part, nn.Identity) or (isinstance(part, nn.Dropout) and part.p == 0)


def _from_linear(module: nn.Module, leaves: list[nn.Module], take: Read) -> DenseFFN:
    linear = [part for part in leaves if type(part) is nn.Linear]
    others = [part for part in leaves if type(part) is not nn.Linear]
    mine = {id(p) for part in linear for p in part.parameters()}
    alone = len(linear) in (2, 3) and len(others) == 1 and all(id(p) in mine for p in module.parameters())
    plain = _activation_name(others[0]) if alone else None
    if plain is None:
        named = [str(part) for part in leaves[:4]] + ["more"] * (len(leaves) > 4)
        raise _unreadable(module, f"it holds {', '.join(named) or 'nothing'}")
    *first, second = linear
    gated, biased = len(first) == 2, [part.bias is not None for part in first]
    if len({part.weight.shape for part in first}) > 1 or len(set(biased)) > 1:
        raise _unreadable(module, "its gate and up layers differ in shape or offsets")
    if first[0].out_features != second.in_features:
        raise _unreadable(module, f"it joins {first[0].out_features} to {second.in_features} neurons")
    weights = Weights(
        torch.cat([take(part.weight) for part in first]).T,
        torch.cat([take(part.bias) for part in first]) if biased[0] else None,
        take(second.weight).T,
        None if second.bias is None else take(second.bias),
    )
    return DenseFFN(weights, _GATED[plain] if gated else plain)


@torch.no_grad()
def _activation_name(part: nn.Module) -> str | None:
    """By its values, since libraries have classes of their own."""
    x = torch.linspace(-4, 4, 33)
    try:
        y = part(x.clone())
    except Exception:  # any part of any model may stand here
        return None
    same = (name for name in _GATED if isinstance(y, Tensor) and y.shape == x.shape and _near(y, name, x))
    return next(same, None)


def _near(y: Tensor, name: str, x: Tensor) -> bool:
    return torch.allclose(y, get_activation(name).plain(x), atol=1e-5)  # GELU by tanh is off by 5e-4


@torch.no_grad()
def _try(module: nn.Module, dense: DenseFFN) -> None:
    w = dense.weights
    x = torch.randn(8, w.w_in.shape[0], generator=torch.Generator().manual_seed(0)).to(w.w_in)
    want = dense.hidden(x) @ w.w_out
    want = want if w.b_out is None else want + w.b_out
    try:
        got = module(x)
    except Exception as error:
        raise _unreadable(module, f"it cannot be called with rows: {error}") from error
    near = torch.finfo(want.dtype).eps ** 0.5
    same = isinstance(got, Tensor) and got.shape == want.shape
    if not same or not torch.allclose(got, want, rtol=near, atol=near * float(want.abs().max())):
        raise _unreadable(module, "it does something else with its layers")


def _unreadable(module: nn.Module, why: str) -> RoutingError:
    return RoutingError(
        f"cannot read a {type(module).__name__} as a feed-forward network: {why}",
        where="read_ffn",
        fix="use linear layers around one GELU, SiLU or ReLU (or gate, up, down), or a StackedFFN of 1 expert; "
        "no dropout above 0",
    )
