"""The selective state-space layer of Mamba, in plain PyTorch."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from terramoe.nets.scan import linear_recurrence


class SelectiveScan(nn.Module):
    """Sequences through a state space whose step size, input and output maps depend on the input.

    ``h[t] = exp(delta[t] A) h[t-1] + delta[t] B[t] u[t]``, ``y[t] = C[t] h[t] + D u[t]``. Source: Mamba: Linear-Time
    Sequence Modeling with Selective State Spaces, 2023, arXiv 2312.00752.

    Args:
        dim: channels d of the sequence.
        state: state size n per channel.
    """

    def __init__(self, dim: int, state: int = 16) -> None:
        super().__init__()
        self.state = state
        self.step_rank = math.ceil(dim / 16)
        self.project = nn.Linear(dim, self.step_rank + 2 * state, bias=False)
        self.step = nn.Linear(self.step_rank, dim)
        self.log_decay = nn.Parameter(torch.log(torch.arange(1, state + 1).float()).repeat(dim, 1))
        self.skip = nn.Parameter(torch.ones(dim))
        # Step sizes start log-uniform in [0.001, 0.1], through the inverse of softplus.
        step = torch.exp(torch.empty(dim).uniform_(math.log(1e-3), math.log(1e-1)))
        nn.init.uniform_(self.step.weight, -(self.step_rank**-0.5), self.step_rank**-0.5)
        with torch.no_grad():
            self.step.bias.copy_(step + torch.log(-torch.expm1(-step)))

    def forward(self, u: Tensor) -> Tensor:
        """(L, N, d) -> (L, N, d): N sequences of length L, time first."""
        step, b, c = self.project(u).split([self.step_rank, self.state, self.state], dim=-1)
        delta = nn.functional.softplus(self.step(step))
        decay = torch.exp(delta[..., None] * -torch.exp(self.log_decay))  # (L, N, d, n)
        inflow = (delta * u)[..., None] * b[..., None, :]
        h = linear_recurrence(decay, inflow)
        return (h @ c[..., None]).squeeze(-1) + self.skip * u
