"""Noise on logits, in training only."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from terramoe.moe.routing import RouteInput
from terramoe.moe.scorers.scores import Scores


class NoisyScorer(nn.Module):
    """Adds Gaussian noise with a learned standard deviation to another scorer's logits, in training only.

    ``logits = clean + eps * (softplus(x W_noise) + floor)``, eps ~ N(0, 1); W_noise starts at zero. In evaluation
    mode the logits are the clean ones. Source: Outrageously Large Neural Networks: The Sparsely-Gated
    Mixture-of-Experts Layer, 2017, arXiv 1701.06538.

    Args:
        scorer: the scorer of the clean logits.
        dim: channels D of an item.
        num_experts: E.
        floor: smallest standard deviation.
    """

    def __init__(self, scorer: nn.Module, dim: int, num_experts: int, *, floor: float = 1e-2) -> None:
        super().__init__()
        self.scorer, self.floor = scorer, floor
        self.noise = nn.Linear(dim, num_experts, bias=False)
        nn.init.zeros_(self.noise.weight)

    def forward(self, inp: RouteInput) -> Scores:
        """RouteInput with x (T, D) or (T, ..., D) -> logits (T, E), their mean and standard deviation."""
        clean = self.scorer(inp).logits
        if not self.training:
            return Scores(clean)
        std = nn.functional.softplus(self._spread(inp)) + self.floor
        return Scores(clean + torch.randn_like(clean) * std, clean, std)

    def _spread(self, inp: RouteInput) -> Tensor:
        features = inp.features()
        with torch.autocast(features.device.type, enabled=False):
            return nn.functional.linear(features, self.noise.weight.to(features.dtype))
