"""A bank of two-layer feed-forward experts with stacked weights, plain or gated."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from terramoe.errors import RoutingError
from terramoe.moe.experts.activations import get_activation
from terramoe.moe.experts.bank import Bank
from terramoe.moe.experts.fused import Weights, fused_ffn
from terramoe.moe.experts.grouped_mm import grouped_ffn
from terramoe.moe.routing import Routing
from terramoe.moe.sorting import sort_pairs


class StackedFFN(Bank):
    """E experts ``x -> act(x W1 + b1) W2 + b2`` whose weights are 3-D parameters.

    With a gated activation ("swiglu", "geglu", "reglu") W1 has 2H columns: ``act(x W_gate) * (x W_up)``.

    Args:
        num_experts: E.
        dim: input channels D.
        hidden: hidden channels H of each expert.
        dim_out: output channels; D unless given.
        activation: "gelu", "relu", "silu", or gated "geglu", "reglu", "swiglu".
        bias: whether the two matrices have offsets.

    Each expert starts as its own ``nn.Linear`` pair would (uniform in ±1/sqrt(fan_in)).
    """

    def __init__(
        self,
        num_experts: int,
        dim: int,
        hidden: int,
        dim_out: int | None = None,
        activation: str = "gelu",
        *,
        bias: bool = True,
    ) -> None:
        super().__init__()
        dim_out = dim if dim_out is None else dim_out
        if min(num_experts, dim, hidden, dim_out) < 1:
            raise RoutingError(
                f"{num_experts} experts of widths {dim} and {hidden}, giving {dim_out} channels",
                where=type(self).__name__,
                fix="use at least 1 of each",
            )
        self.num_experts, self.dim, self.hidden = num_experts, dim, hidden
        self.activation_name, self.activation = activation, get_activation(activation)
        hidden_in = 2 * hidden if self.activation.gated else hidden
        self.w_in_EDH = nn.Parameter(torch.empty(num_experts, dim, hidden_in))
        self.b_in_EH = nn.Parameter(torch.empty(num_experts, hidden_in)) if bias else None
        self.w_out_EHD = nn.Parameter(torch.empty(num_experts, hidden, dim_out))
        self.b_out_ED = nn.Parameter(torch.empty(num_experts, dim_out)) if bias else None
        for weight, offset in ((self.w_in_EDH, self.b_in_EH), (self.w_out_EHD, self.b_out_ED)):
            bound = 1 / math.sqrt(weight.shape[1])
            nn.init.uniform_(weight, -bound, bound)
            if offset is not None:
                nn.init.uniform_(offset, -bound, bound)

    def weights(self) -> Weights:
        """The four parameters in the order in which they are applied."""
        return Weights(self.w_in_EDH, self.b_in_EH, self.w_out_EHD, self.b_out_ED)

    def run(self, expert: int, x: Tensor) -> Tensor:
        """One expert: (n, ..., D) -> (n, ..., D_out)."""
        self.check_width(x)
        w = Weights(*(None if p is None else p[expert] for p in self.weights()))
        hidden = self.activation.plain(_plus(x @ w.w_in, w.b_in))
        return _plus(hidden @ w.w_out, w.b_out)

    def run_all(self, x: Tensor) -> Tensor:
        """Every expert on every row: (T, D) -> (E, T, D_out); inner dimensions are rows too."""
        self.check_width(x)
        rows, w = x.reshape(-1, x.shape[-1]), self.weights()
        hidden = self.activation.plain(_plus(rows @ w.w_in, w.b_in, 1))
        y = _plus(hidden @ w.w_out, w.b_out, 1)
        return y.reshape(self.num_experts, *x.shape[:-1], y.shape[-1])

    def run_each(self, x: Tensor, expert: Tensor) -> Tensor:
        """Row i by expert ``expert[i]``: (N, ..., D) -> (N, ..., D_out). Holds N copies of the weights."""
        self.check_width(x)
        rows = x.flatten(1, -2) if x.ndim > 2 else x[:, None]  # (N, rows, D)
        w = Weights(*(None if p is None else p[expert] for p in self.weights()))
        hidden = self.activation.plain(_plus(rows @ w.w_in, w.b_in, 1))
        y = _plus(hidden @ w.w_out, w.b_out, 1)
        return y.reshape(*x.shape[:-1], y.shape[-1])

    def run_padded(self, x: Tensor) -> Tensor:
        """Rows already dealt to experts: (E, C, ..., D) -> (E, C, ..., D_out)."""
        self.check_width(x)
        rows, w = x.reshape(self.num_experts, -1, x.shape[-1]), self.weights()
        hidden = self.activation.plain(_plus(rows @ w.w_in, w.b_in, 1))
        y = _plus(hidden @ w.w_out, w.b_out, 1)
        return y.reshape(*x.shape[:-1], y.shape[-1])

    def run_routed(self, x: Tensor, routing: Routing) -> Tensor:
        """Items (T, ..., D) -> weighted sums (T, ..., D_out), by the fastest way here."""
        self.check_width(x)
        weights = self.weights()
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            x, weights = x.to(dtype), Weights(*(None if p is None else p.to(dtype) for p in weights))
        run = fused_ffn if x.device.type == "cpu" else grouped_ffn
        return run(x, routing.weight, weights, sort_pairs(routing), self.activation)

    def check_width(self, x: Tensor) -> None:
        """RoutingError unless x (..., D) has this bank's input width."""
        if x.shape[-1] != self.dim:
            raise RoutingError(
                f"items have {x.shape[-1]} channels, the experts expect {self.dim}",
                where=type(self).__name__,
                fix="build the bank with the width of its input",
            )


def _plus(x: Tensor, offset: Tensor | None, new_dim: int | None = None) -> Tensor:
    if offset is None:
        return x
    return x + (offset if new_dim is None else offset.unsqueeze(new_dim))
