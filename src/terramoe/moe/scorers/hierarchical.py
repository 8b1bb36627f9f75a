"""A tree of gates written as one scorer."""

from __future__ import annotations

import torch
from torch import nn

from terramoe.moe.routing import RouteInput
from terramoe.moe.scorers.linear import LinearScorer
from terramoe.moe.scorers.scores import Scores


class HierarchicalScorer(nn.Module):
    """Logits of expert (i, j) = log g_i(x) + log g_{j|i}(x): softmax of them is the product of the gates on the path.

    Source: Hierarchical Mixtures of Experts and the EM Algorithm, 1994, DOI 10.1162/neco.1994.6.2.181.

    Args:
        dim: channels D of an item.
        groups: branches of the top gate.
        experts_per_group: branches of each lower gate; E is their product, experts of a group stand together.
    """

    def __init__(self, dim: int, groups: int, experts_per_group: int) -> None:
        super().__init__()
        self.shape = (groups, experts_per_group)
        self.num_experts = groups * experts_per_group
        self.top = LinearScorer(dim, groups, bias=True)
        self.lower = LinearScorer(dim, self.num_experts, bias=True)

    def forward(self, inp: RouteInput) -> Scores:
        """RouteInput with x (T, D) or (T, ..., D) -> logits (T, E), each row's softmax normaliser being 1."""
        top = self.top(inp).logits.log_softmax(-1)
        lower = self.lower(inp).logits.unflatten(-1, self.shape).log_softmax(-1)
        with torch.autocast(top.device.type, enabled=False):
            return Scores((top[..., None] + lower).flatten(-2))
