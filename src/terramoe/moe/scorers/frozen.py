"""A router that never learns."""

from __future__ import annotations

from torch import nn

from terramoe.moe.routing import RouteInput
from terramoe.moe.scorers.scores import Scores


class FrozenScorer(nn.Module):
    """Holds another scorer at its random start (SMoE-Dropout: Sparse MoE as the New Dropout, 2023, arXiv 2303.01610).

    Its parameters need no gradient and are saved with the model; items still get a gradient through the weights.
    """

    def __init__(self, scorer: nn.Module) -> None:
        super().__init__()
        self.scorer = scorer.requires_grad_(False)

    def forward(self, inp: RouteInput) -> Scores:
        """RouteInput -> logits (T, E)."""
        return self.scorer(inp)
