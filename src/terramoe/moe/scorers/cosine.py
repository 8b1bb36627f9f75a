"""The cosine scorer: directions are compared, lengths do not count."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from terramoe.moe.routing import RouteInput
from terramoe.moe.scorers.scores import Scores, checked_features


class CosineScorer(nn.Module):
    """Logits = cos(P x, m_e) * exp(s), with a projection P, one vector m_e per expert and a learned scale.

    The scale starts at ``1 / temperature`` and is capped at 100. Source: Tutel: Adaptive Mixture-of-Experts at Scale,
    2022, arXiv 2206.03382; the router is that of X-MoE, 2022, arXiv 2204.09179.

    Args:
        dim: channels D of an item.
        num_experts: E.
        projected: width of the space in which angles are taken.
        temperature: initial temperature.
    """

    def __init__(self, dim: int, num_experts: int, *, projected: int = 256, temperature: float = 0.5) -> None:
        super().__init__()
        self.dim, self.num_experts = dim, num_experts
        self.projection = nn.Linear(dim, projected)
        self.experts = nn.Parameter(torch.randn(num_experts, projected) * 0.01)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / temperature)))

    def forward(self, inp: RouteInput) -> Scores:
        """RouteInput with x (T, D) or (T, ..., D) -> logits (T, E)."""
        x = checked_features(inp, self.dim, "CosineScorer")
        with torch.autocast(x.device.type, enabled=False):
            weight, bias = self.projection.weight.to(x.dtype), self.projection.bias.to(x.dtype)
            rows = F.normalize(F.linear(x, weight, bias), dim=-1)
            experts = F.normalize(self.experts.to(x.dtype), dim=-1)
            scale = self.log_scale.to(x.dtype).clamp_max(math.log(100)).exp()
            return Scores((experts @ rows.T * scale).T)
