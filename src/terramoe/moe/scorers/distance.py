"""Scorers by closeness to a centre: prototypes, and the Gaussian gate."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from terramoe.errors import RoutingError
from terramoe.moe.routing import RouteInput
from terramoe.moe.scorers.scores import Scores, checked_features


class PrototypeScorer(nn.Module):
    """Closeness of an item to one learned vector per expert.

    "dot" gives x . m_e (BASE Layers, 2021, arXiv 2103.16716), "euclidean" -|x - m_e|^2 / temperature (c-BTM, 2023,
    arXiv 2303.14177: nearest clusters decide). Vectors start orthogonal with length ``gain``.

    Args:
        dim: channels D of an item.
        num_experts: E.
        metric: "dot" or "euclidean".
        temperature: divides the squared distance.
        gain: length of the vectors at the start.
    """

    def __init__(
        self,
        dim: int,
        num_experts: int,
        *,
        metric: Literal["dot", "euclidean"] = "dot",
        temperature: float = 1.0,
        gain: float = 0.1,
    ) -> None:
        super().__init__()
        if metric not in ("dot", "euclidean") or temperature <= 0:
            raise RoutingError(
                f"metric '{metric}', temperature {temperature}",
                where="PrototypeScorer",
                fix="use 'dot' or 'euclidean' and a temperature above 0",
            )
        self.dim, self.num_experts, self.metric, self.temperature = dim, num_experts, metric, temperature
        self.prototypes = nn.Parameter(nn.init.orthogonal_(torch.empty(num_experts, dim), gain=gain))

    def forward(self, inp: RouteInput) -> Scores:
        """RouteInput with x (T, D) or (T, ..., D) -> logits (T, E)."""
        x = checked_features(inp, self.dim, "PrototypeScorer")
        with torch.autocast(x.device.type, enabled=False):
            m = self.prototypes.to(x.dtype)
            dots = m @ x.T  # (E, T)
            if self.metric == "dot":
                return Scores(dots.T)
            return Scores(-(x.square().sum(-1) - 2 * dots + m.square().sum(-1, keepdim=True)).T / self.temperature)


class GaussianScorer(nn.Module):
    """Logits = log(pi_e N(x | m_e, diag s_e^2)): with a softmax link the posterior of a Gaussian mixture over x.

    Source: An Alternative Model for Mixtures of Experts, 1994 (NeurIPS 7), with diagonal covariances.
    """

    def __init__(self, dim: int, num_experts: int) -> None:
        super().__init__()
        self.dim, self.num_experts = dim, num_experts
        self.mean = nn.Parameter(torch.randn(num_experts, dim))
        self.log_std = nn.Parameter(torch.zeros(num_experts, dim))
        self.log_prior = nn.Parameter(torch.zeros(num_experts))

    def forward(self, inp: RouteInput) -> Scores:
        """RouteInput with x (T, D) or (T, ..., D) -> logits (T, E)."""
        x = checked_features(inp, self.dim, "GaussianScorer")
        with torch.autocast(x.device.type, enabled=False):
            mean, log_std = self.mean.to(x.dtype), self.log_std.to(x.dtype)
            return Scores(self.log_prior.log_softmax(0).to(x.dtype) + _log_normal(x, mean, log_std))


def _log_normal(x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """log N(x | mean_e, diag): (T, D), (E, D), (E, D) -> (T, E)."""
    z = (x[:, None] - mean) * torch.exp(-log_std)
    return -0.5 * z.square().sum(-1) - log_std.sum(-1) - 0.5 * x.shape[-1] * math.log(2 * math.pi)
