"""A scorer with one hidden layer, for choices that no plane separates."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from terramoe.moe.routing import RouteInput
from terramoe.moe.scorers.scores import Scores, checked_features


class MLPScorer(nn.Module):
    """Logits = W2 tanh(W1 x + b1) + b2, in float32 or better."""

    def __init__(self, dim: int, num_experts: int, *, hidden: int = 64) -> None:
        super().__init__()
        self.dim, self.num_experts = dim, num_experts
        self.first, self.second = nn.Linear(dim, hidden), nn.Linear(hidden, num_experts)

    def forward(self, inp: RouteInput) -> Scores:
        """RouteInput with x (T, D) or (T, ..., D) -> logits (T, E)."""
        x = checked_features(inp, self.dim, "MLPScorer")
        with torch.autocast(x.device.type, enabled=False):
            hidden = F.linear(x, self.first.weight.to(x.dtype), self.first.bias.to(x.dtype)).tanh()
            return Scores(F.linear(hidden, self.second.weight.to(x.dtype), self.second.bias.to(x.dtype)))
