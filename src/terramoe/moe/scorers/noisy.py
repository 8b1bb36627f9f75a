"""Noise on logits or items, in training only."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from terramoe.errors import RoutingError
from terramoe.moe.routing import RouteInput
from terramoe.moe.scorers.scores import Scores, checked_features


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
        self.scorer, self.floor, self.dim = scorer, floor, dim
        self.noise = nn.Linear(dim, num_experts, bias=False)
        nn.init.zeros_(self.noise.weight)

    def forward(self, inp: RouteInput) -> Scores:
        """RouteInput with x (T, D) or (T, ..., D) -> logits (T, E), their mean and standard deviation."""
        clean = self.scorer(inp).logits
        if not self.training:
            return Scores(clean)
        std = nn.functional.softplus(self._spread(inp)) + self.floor
        if std.shape != clean.shape:
            raise RoutingError(
                f"noise for {std.shape[-1]} experts, but the scorer gives {clean.shape[-1]} logits",
                where="NoisyScorer",
                fix="build both with the same number of experts",
            )
        return Scores(clean + torch.randn_like(clean) * std, clean, std)

    def _spread(self, inp: RouteInput) -> Tensor:
        features = checked_features(inp, self.dim, "NoisyScorer")
        with torch.autocast(features.device.type, enabled=False):
            return nn.functional.linear(features, self.noise.weight.to(features.dtype))


class FixedNoiseScorer(nn.Module):
    """Adds Gaussian noise of a fixed standard deviation to another scorer's logits, in training only.

    Scaling Vision with Sparse Mixture of Experts, 2021, arXiv 2106.05974, uses 1 / E.
    """

    def __init__(self, scorer: nn.Module, std: float) -> None:
        super().__init__()
        self.scorer, self.std = scorer, std

    def forward(self, inp: RouteInput) -> Scores:
        """RouteInput -> logits (T, E), their mean and standard deviation."""
        clean = self.scorer(inp).logits
        if not self.training or self.std == 0:
            return Scores(clean)
        return Scores(clean + torch.randn_like(clean) * self.std, clean, torch.full_like(clean, self.std))


class GumbelScorer(nn.Module):
    """Adds Gumbel noise, so that the largest logit is a sample of softmax(logits / 1); in training only."""

    def __init__(self, scorer: nn.Module) -> None:
        super().__init__()
        self.scorer = scorer

    def forward(self, inp: RouteInput) -> Scores:
        """RouteInput -> logits (T, E)."""
        clean = self.scorer(inp).logits
        if not self.training:
            return Scores(clean)
        uniform = torch.rand_like(clean).clamp_min(torch.finfo(clean.dtype).tiny)
        return Scores(clean - torch.log(-torch.log(uniform)), clean)


class JitterScorer(nn.Module):
    """Multiplies the item that the router sees by U(1 - eps, 1 + eps), in training only.

    Source: Switch Transformers, 2021, arXiv 2101.03961 (eps 0.01). The experts see the item as it is.
    """

    def __init__(self, scorer: nn.Module, eps: float = 1e-2) -> None:
        super().__init__()
        self.scorer, self.eps = scorer, eps

    def forward(self, inp: RouteInput) -> Scores:
        """RouteInput with x (T, D) or (T, ..., D) -> logits (T, E)."""
        if not self.training or self.eps == 0:
            return self.scorer(inp)
        factor = torch.empty_like(inp.x).uniform_(1 - self.eps, 1 + self.eps)
        return self.scorer(replace(inp, x=inp.x * factor))
