"""A bank of two-layer feed-forward experts with stacked weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from terramoe.moe.experts.bank import Bank


class StackedFFN(Bank):
    """E experts ``x -> gelu(x W1 + b1) W2 + b2`` whose weights are 3-D parameters.

    Args:
        num_experts: E.
        dim: input channels D.
        hidden: hidden channels H of each expert.
        dim_out: output channels; D unless given.

    Each expert starts as its own ``nn.Linear`` pair would (uniform in ±1/sqrt(fan_in)).
    """

    def __init__(self, num_experts: int, dim: int, hidden: int, dim_out: int | None = None) -> None:
        super().__init__()
        dim_out = dim if dim_out is None else dim_out
        self.num_experts = num_experts
        self.w_in_EDH = nn.Parameter(torch.empty(num_experts, dim, hidden))
        self.b_in_EH = nn.Parameter(torch.empty(num_experts, hidden))
        self.w_out_EHD = nn.Parameter(torch.empty(num_experts, hidden, dim_out))
        self.b_out_ED = nn.Parameter(torch.empty(num_experts, dim_out))
        for weight, bias in ((self.w_in_EDH, self.b_in_EH), (self.w_out_EHD, self.b_out_ED)):
            bound = 1 / math.sqrt(weight.shape[1])
            nn.init.uniform_(weight, -bound, bound)
            nn.init.uniform_(bias, -bound, bound)

    def run(self, expert: int, x: Tensor) -> Tensor:
        """One expert: (n, ..., D) -> (n, ..., D_out)."""
        hidden = nn.functional.gelu(x @ self.w_in_EDH[expert] + self.b_in_EH[expert])
        return hidden @ self.w_out_EHD[expert] + self.b_out_ED[expert]

    def run_all(self, x: Tensor) -> Tensor:
        """Every expert on every row: (T, D) -> (E, T, D_out); inner dimensions are rows too."""
        rows = x.reshape(-1, x.shape[-1])
        hidden = nn.functional.gelu(rows @ self.w_in_EDH + self.b_in_EH[:, None])
        y = hidden @ self.w_out_EHD + self.b_out_ED[:, None]
        return y.reshape(self.num_experts, *x.shape[:-1], y.shape[-1])

    def run_each(self, x: Tensor, expert: Tensor) -> Tensor:
        """Row i by expert ``expert[i]``: (N, ..., D) -> (N, ..., D_out). Holds N copies of the weights."""
        rows = x.flatten(1, -2) if x.ndim > 2 else x[:, None]  # (N, rows, D)
        hidden = nn.functional.gelu(rows @ self.w_in_EDH[expert] + self.b_in_EH[expert][:, None])
        y = hidden @ self.w_out_EHD[expert] + self.b_out_ED[expert][:, None]
        return y.reshape(*x.shape[:-1], y.shape[-1])
