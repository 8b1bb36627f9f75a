"""The linear scorer: one matrix, as in nearly every published router."""

from __future__ import annotations

import torch
from torch import nn

from terramoe.moe.products import few_by_many
from terramoe.moe.routing import RouteInput
from terramoe.moe.scorers.scores import Scores, check_width


class LinearScorer(nn.Module):
    """Logits = x W (+ b), computed in float32 or better even under autocast.

    Args:
        dim: channels D of an item.
        num_experts: E.
        bias: add a learned offset per expert.
    """

    def __init__(self, dim: int, num_experts: int, *, bias: bool = False) -> None:
        super().__init__()
        self.dim, self.num_experts = dim, num_experts
        self.linear = nn.Linear(dim, num_experts, bias=bias)

    def forward(self, inp: RouteInput) -> Scores:
        """RouteInput with x (T, D) or (T, ..., D), which is averaged -> logits (T, E)."""
        check_width(inp, self.dim, "LinearScorer")
        rows = inp.rows()
        dtype = torch.promote_types(rows.dtype, torch.float32)
        with torch.autocast(rows.device.type, enabled=False):
            # (E, T) in memory: whatever runs over the few experts of an item then runs over many items at once.
            logits_ET = few_by_many(self.linear.weight.to(dtype), rows)
            if self.linear.bias is not None:
                logits_ET = logits_ET + self.linear.bias.to(dtype)[:, None]
            return Scores(logits_ET.T)


class ZeroScorer(nn.Module):
    """All logits 0: the uniform-routing control. It has no parameters and learns nothing."""

    def __init__(self, num_experts: int) -> None:
        super().__init__()
        self.num_experts = num_experts

    def forward(self, inp: RouteInput) -> Scores:
        """RouteInput -> logits (T, E) of zeros."""
        features = inp.features()
        return Scores(features.new_zeros(features.shape[0], self.num_experts))
